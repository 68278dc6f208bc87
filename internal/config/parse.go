package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

type format uint8

const (
	formatHCL format = iota
	formatJSON
	formatYAML
)

var yamlStart = regexp.MustCompile(`^(?:---|["']?[A-Za-z_]+["']?[ \t]*:(?:[ \t\r]|$))`)

// formatOf goes by the file's extension, else by how the text begins: a brace is
// JSON, "name:" is YAML, all else HCL.
func formatOf(filename string, data []byte) format {
	switch strings.ToLower(filepath.Ext(filename)) {
	case ".hcl":
		return formatHCL
	case ".json":
		return formatJSON
	case ".yaml", ".yml":
		return formatYAML
	}
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0 || line[0] == '#':
		case line[0] == '{':
			return formatJSON
		case yamlStart.Match(line):
			return formatYAML
		default:
			return formatHCL
		}
	}
	return formatHCL
}

// parse reads a document that must hold one object. What is wrong with it goes to
// r; nil means that there is nothing to decode.
func parse(f format, data []byte, r *report) *node {
	if len(data) > maxBytes {
		r.at(0, "", "%d bytes are more than the limit of %d", len(data), maxBytes)
		return nil
	}
	var n *node
	switch f {
	case formatJSON:
		n = parseJSON(data, r)
	case formatYAML:
		n = parseYAML(data, r)
	default:
		n = parseHCL(data, r)
	}
	if n != nil && n.kind != objectNode {
		r.at(n.line, "", "want an object, got %s", n.describe())
		return nil
	}
	return n
}

// members builds an object and reports names given twice.
type members struct {
	n    *node
	seen map[string]int // name -> line
	r    *report
}

func newMembers(line int, r *report) *members {
	return &members{n: &node{kind: objectNode, line: line}, seen: map[string]int{}, r: r}
}

func (m *members) add(f field) bool {
	if before, ok := m.seen[f.name]; ok {
		m.r.at(f.line, shown(f.name), "given twice, first on line %d", before)
		return false
	}
	m.seen[f.name] = f.line
	m.n.fields = append(m.n.fields, f)
	return true
}

func tooDeep(r *report, line int) {
	r.at(line, "", "nested more than %d deep", maxDepth)
}

func number(literal string, line int, r *report) *node {
	if _, err := strconv.ParseFloat(literal, 64); err != nil {
		r.at(line, "", "number %s: out of range", cut(literal))
		literal = "0"
	}
	return &node{kind: numberNode, line: line, text: literal}
}

// jsonReader walks tokens of data, which is known to be valid JSON.
type jsonReader struct {
	dec  *json.Decoder
	data []byte
	at   int64 // offset up to which line has counted
	line int
	r    *report
}

func parseJSON(data []byte, r *report) *node {
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		line := 0
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			line = 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		}
		r.at(line, "", "not valid JSON: %s", oneLine(err.Error()))
		return nil
	}
	p := &jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1, r: r}
	p.dec.UseNumber()
	return p.value(0)
}

func (p *jsonReader) token() json.Token {
	t, err := p.dec.Token()
	if err != nil {
		return nil
	}
	to := p.dec.InputOffset()
	p.line += bytes.Count(p.data[p.at:to], []byte("\n"))
	p.at = to
	return t
}

func (p *jsonReader) value(depth int) *node {
	t := p.token()
	n := &node{line: p.line}
	switch t := t.(type) {
	case bool:
		n.kind, n.truth = boolNode, t
	case string:
		n.kind, n.text = textNode, t
	case json.Number:
		return number(t.String(), p.line, p.r)
	case json.Delim:
		if depth >= maxDepth {
			tooDeep(p.r, p.line)
			return nil
		}
		if t == '{' {
			return p.object(depth)
		}
		n.kind = listNode
		for p.dec.More() {
			item := p.value(depth + 1)
			if item == nil {
				return nil
			}
			n.items = append(n.items, item)
		}
		p.token()
	}
	return n
}

func (p *jsonReader) object(depth int) *node {
	m := newMembers(p.line, p.r)
	for p.dec.More() {
		name, _ := p.token().(string)
		f := field{name: name, line: p.line}
		if f.value = p.value(depth + 1); f.value == nil {
			return nil
		}
		m.add(f)
	}
	p.token()
	return m.n
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

func parseYAML(data []byte, r *report) *node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			r.at(0, "", "empty")
			return nil
		}
		text, line := strings.TrimPrefix(oneLine(err.Error()), "yaml: "), 0
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = text[len(m[0]):]
		}
		r.at(line, "", "not valid YAML: %s", text)
		return nil
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		r.at(second.Line, "", "more than one YAML document; use one file for each")
		return nil
	}
	if len(doc.Content) != 1 {
		r.at(0, "", "empty")
		return nil
	}
	return yamlNode(doc.Content[0], 0, r)
}

func yamlNode(y *yaml.Node, depth int, r *report) *node {
	if depth > maxDepth {
		tooDeep(r, y.Line)
		return nil
	}
	switch y.Kind {
	case yaml.ScalarNode:
		return yamlScalar(y, r)
	case yaml.SequenceNode:
		n := &node{kind: listNode, line: y.Line}
		for _, c := range y.Content {
			item := yamlNode(c, depth+1, r)
			if item == nil {
				return nil
			}
			n.items = append(n.items, item)
		}
		return n
	case yaml.MappingNode:
		m := newMembers(y.Line, r)
		for i := 0; i+1 < len(y.Content); i += 2 {
			key := y.Content[i]
			if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
				r.at(key.Line, "", "want a plain name as key")
				return nil
			}
			f := field{name: key.Value, line: key.Line}
			if f.value = yamlNode(y.Content[i+1], depth+1, r); f.value == nil {
				return nil
			}
			m.add(f)
		}
		return m.n
	default:
		r.at(y.Line, "", "YAML aliases are not supported; write the value out")
		return nil
	}
}

func yamlScalar(y *yaml.Node, r *report) *node {
	n := &node{line: y.Line}
	switch tag := y.ShortTag(); tag {
	case "!!null":
	case "!!str", "!!timestamp":
		n.kind, n.text = textNode, y.Value
	case "!!bool":
		n.kind = boolNode
		if err := y.Decode(&n.truth); err != nil {
			r.at(y.Line, "", "want true or false, got %q", cut(y.Value))
		}
	case "!!int", "!!float":
		var i int64
		if tag == "!!int" && y.Decode(&i) == nil {
			return number(strconv.FormatInt(i, 10), y.Line, r)
		}
		var f float64
		if err := y.Decode(&f); err != nil || f-f != 0 { // infinite or not a number
			r.at(y.Line, "", "want a finite number, got %q", cut(y.Value))
			return n
		}
		return number(strconv.FormatFloat(f, 'f', -1, 64), y.Line, r)
	default:
		r.at(y.Line, "", "YAML tag %s is not supported", shown(tag))
	}
	return n
}
