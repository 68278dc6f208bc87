package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a document. A body at the size limit decodes in well under a second.
const (
	maxBytes = 1 << 20
	maxDepth = 32
)

type nodeKind uint8

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	textNode
	listNode
	objectNode
)

func (k nodeKind) String() string {
	return [...]string{"null", "true or false", "a number", "a string", "a list", "an object"}[k]
}

// node is a value of a document, whichever language it was written in.
type node struct {
	kind   nodeKind
	line   int    // 1-based; 0 when not from a document
	text   string // of a string; the literal of a number, which strconv.ParseFloat takes
	truth  bool
	items  []*node
	fields []field // in the document's order; names are unique
	// block marks HCL blocks: an object written as one, or a list of several of one name.
	block bool
}

type field struct {
	name  string
	line  int
	value *node
}

// describe is the value as a message names it.
func (n *node) describe() string {
	switch n.kind {
	case textNode:
		return "string " + strconv.Quote(cut(n.text))
	case numberNode:
		return "number " + cut(n.text)
	case boolNode:
		return strconv.FormatBool(n.truth)
	default:
		return n.kind.String()
	}
}

// labelled tells an object made of an HCL block's label from one that was written.
func (n *node) labelled() bool { return n.kind == objectNode && n.block && n.line == 0 }

// get is the member of an object whose name matches as Consul matches names, or nil.
func (n *node) get(name string) *node {
	if n == nil || n.kind != objectNode {
		return nil
	}
	want := canonical(name)
	for _, f := range n.fields {
		if canonical(f.name) == want {
			return f.value
		}
	}
	return nil
}

// member is the value of exactly that name in an object, or nil.
func (n *node) member(name string) *node {
	for _, f := range n.fields {
		if f.name == name {
			return f.value
		}
	}
	return nil
}

// str is the member's text, or "" when it is no string.
func (n *node) str(name string) string {
	if m := n.get(name); m != nil && m.kind == textNode {
		return m.text
	}
	return ""
}

// lineOf is the line of the deepest part of path that the document has.
func (n *node) lineOf(path string) int {
	if n == nil {
		return 0
	}
	line := n.line
	for part := range strings.SplitSeq(path, ".") {
		name, rest, _ := strings.Cut(part, "[")
		digits, _, _ := strings.Cut(rest, "]")
		if n.kind == listNode && n.block && len(n.items) == 1 {
			n = n.items[0]
		}
		if n = n.get(name); n == nil {
			return line
		}
		line = max(line, n.line)
		if n.kind == objectNode && digits != "" { // a map's key
			if key, err := strconv.Unquote(digits); err == nil {
				digits = key
			}
			if n = n.member(digits); n == nil {
				return line
			}
			line = max(line, n.line)
			continue
		}
		i, err := strconv.Atoi(digits)
		if err != nil || n.kind != listNode {
			continue
		}
		if i >= len(n.items) {
			return line
		}
		n = n.items[i]
		line = max(line, n.line)
	}
	return line
}

// value is the node as encoding/json would decode it into an any.
func (n *node) value() any {
	switch n.kind {
	case boolNode:
		return n.truth
	case numberNode:
		f, _ := strconv.ParseFloat(n.text, 64)
		return f
	case textNode:
		return n.text
	case listNode:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = item.value()
		}
		return out
	case objectNode:
		out := make(map[string]any, len(n.fields))
		for _, f := range n.fields {
			out[f.name] = f.value.value()
		}
		return out
	default:
		return nil
	}
}

// off reports whether the value says nothing: zero, empty, made of such values,
// or one of the given words.
func (n *node) off(words ...string) bool {
	switch n.kind {
	case boolNode:
		return !n.truth
	case numberNode:
		f, _ := strconv.ParseFloat(n.text, 64)
		return f == 0
	case textNode:
		return n.text == "" || slices.Contains(words, n.text)
	case listNode:
		return len(n.items) == 0
	case objectNode:
		return !slices.ContainsFunc(n.fields, func(f field) bool { return !f.value.off(words...) })
	default:
		return true
	}
}

// nodeOf is the inverse of [node.value] for maps that came from elsewhere, with
// keys sorted. It refuses what no document can hold.
func nodeOf(v any, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Invalid:
		return &node{}, nil
	case reflect.Pointer, reflect.Interface:
		if rv.IsNil() {
			return &node{}, nil
		}
		return nodeOf(rv.Elem().Interface(), depth+1)
	case reflect.Bool:
		return &node{kind: boolNode, truth: rv.Bool()}, nil
	case reflect.String: // json.Number too
		if _, ok := v.(interface{ Float64() (float64, error) }); ok {
			return &node{kind: numberNode, text: rv.String()}, nil
		}
		return &node{kind: textNode, text: rv.String()}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return &node{kind: numberNode, text: strconv.FormatInt(rv.Int(), 10)}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return &node{kind: numberNode, text: strconv.FormatUint(rv.Uint(), 10)}, nil
	case reflect.Float32, reflect.Float64:
		return &node{kind: numberNode, text: strconv.FormatFloat(rv.Float(), 'f', -1, 64)}, nil
	case reflect.Slice, reflect.Array:
		n := &node{kind: listNode}
		for i := range rv.Len() {
			item, err := nodeOf(rv.Index(i).Interface(), depth+1)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case reflect.Map:
		n := &node{kind: objectNode}
		for it := rv.MapRange(); it.Next(); {
			if it.Key().Kind() != reflect.String {
				return nil, fmt.Errorf("key %v: want a string", it.Key())
			}
			value, err := nodeOf(it.Value().Interface(), depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", shown(it.Key().String()), err)
			}
			n.fields = append(n.fields, field{name: it.Key().String(), value: value})
		}
		slices.SortFunc(n.fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
		return n, nil
	default:
		return nil, fmt.Errorf("a Go %s cannot stand in a configuration", rv.Type())
	}
}

// canonical is a field name with Consul's two spellings made one: maxConnections,
// MaxConnections and max_connections are equal.
func canonical(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}
