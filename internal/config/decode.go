package config

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// decoder fills Go values from nodes. Field names are those of the json tags,
// matched by [canonical]; whatever does not fit goes to the report, and the rest
// is decoded all the same. Empty lists and maps decode to nil.
type decoder struct {
	r *report
	// weak takes numbers and booleans that stand in strings, as Consul does in opaque maps.
	weak bool
	// snake spells paths local_bind_port rather than LocalBindPort.
	snake bool
	// unknown, when set, is told of fields that nobody reads in place of the report.
	unknown func(path string)
}

// decode sets v, which must be settable, from n.
func (d *decoder) decode(n *node, v reflect.Value, path string) {
	if n.kind == nullNode {
		return
	}
	if v.Type() == reflect.TypeFor[Duration]() {
		d.duration(n, v, path)
		return
	}
	if v.Type() == reflect.TypeFor[Bytes]() {
		d.bytes(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.decode(n, p.Elem(), path)
		v.Set(p)
	case reflect.Interface:
		v.Set(reflect.ValueOf(n.value()))
	case reflect.String:
		if d.is(n, textNode, path) {
			v.SetString(n.text)
		}
	case reflect.Bool:
		if b, err := strconv.ParseBool(n.text); d.weak && n.kind == textNode && err == nil {
			v.SetBool(b)
		} else if d.is(n, boolNode, path) {
			v.SetBool(n.truth)
		}
	case reflect.Int:
		v.SetInt(d.integer(n, path, math.MinInt, math.MaxInt))
	case reflect.Float64:
		v.SetFloat(d.fraction(n, path))
	case reflect.Uint32:
		v.SetUint(uint64(d.integer(n, path, 0, math.MaxUint32)))
	case reflect.Uint64:
		v.SetUint(uint64(d.integer(n, path, 0, math.MaxInt64)))
	case reflect.Slice:
		d.slice(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Struct:
		d.structure(n, v, path)
	default:
		panic("config: no decoding into " + v.Type().String())
	}
}

func (d *decoder) is(n *node, want nodeKind, path string) bool {
	if n.kind == want {
		return true
	}
	switch {
	case n.block && n.kind == listNode:
		d.r.at(n.items[1].line, path, "given twice, first on line %d", n.items[0].line)
	case want == textNode && (n.kind == numberNode || n.kind == boolNode):
		d.r.at(n.line, path, "want %s, got %s; put it in quotes", want, n.describe())
	default:
		d.r.at(n.line, path, "want %s, got %s", want, n.describe())
	}
	return false
}

func (d *decoder) integer(n *node, path string, low, high int64) int64 {
	literal := n.text
	if !d.weak || n.kind != textNode {
		if !d.is(n, numberNode, path) {
			return 0
		}
	}
	i, err := strconv.ParseInt(literal, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(literal, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			d.r.at(n.line, path, "want a whole number, got %s", n.describe())
			return 0
		}
		i = int64(f)
	}
	if i < low || i > high {
		d.r.at(n.line, path, "%d is out of range %d to %d", i, low, high)
		return 0
	}
	return i
}

func (d *decoder) duration(n *node, v reflect.Value, path string) {
	if n.kind == textNode {
		if n.text == "" {
			return
		}
		t, err := time.ParseDuration(n.text)
		if err != nil {
			d.r.at(n.line, path, `want a duration such as "10s", got %s`, n.describe())
		}
		v.SetInt(int64(t))
		return
	}
	if n.kind != numberNode {
		d.r.at(n.line, path, `want a duration such as "10s", got %s`, n.describe())
		return
	}
	v.SetInt(d.integer(n, path, math.MinInt64, math.MaxInt64))
}

// slice takes one object for a list of one: HCL writes a single block that way.
func (d *decoder) slice(n *node, v reflect.Value, path string) {
	items := n.items
	elem := v.Type().Elem()
	if elem.Kind() == reflect.Pointer {
		elem = elem.Elem()
	}
	switch {
	case n.kind == objectNode && elem.Kind() == reflect.Struct:
		items = []*node{n}
	case !d.is(n, listNode, path):
		return
	}
	if len(items) == 0 {
		return
	}
	out := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		at := index(path, i)
		if item.kind == nullNode {
			d.r.at(item.line, at, "must not be null")
			continue
		}
		d.decode(item, out.Index(i), at)
	}
	v.Set(out)
}

func (d *decoder) mapping(n *node, v reflect.Value, path string) {
	if !d.is(n, objectNode, path) || len(n.fields) == 0 {
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.fields))
	for _, f := range n.fields {
		value := reflect.New(v.Type().Elem()).Elem()
		at := path + "[" + strconv.Quote(cut(f.name)) + "]"
		if f.value.kind == nullNode && value.Kind() != reflect.Interface {
			d.r.at(f.line, at, "must not be null")
			continue
		}
		d.decode(f.value, value, at)
		out.SetMapIndex(reflect.ValueOf(f.name), value)
	}
	v.Set(out)
}

func (d *decoder) structure(n *node, v reflect.Value, path string) {
	if n.block && n.kind == listNode && len(n.items) == 1 {
		n = n.items[0]
	}
	if !d.is(n, objectNode, path) {
		return
	}
	names := fieldNames(v.Type())
	rules := rulesFor(v.Type())
	spell := func(name string) string { return name }
	if d.snake {
		spell = snake
	}
	seen := map[string]int{}
	for _, f := range n.fields {
		key := rules.field(f.name)
		if first, again := seen[key]; again {
			d.r.at(f.line, join(path, shown(f.name)), "given twice, first on line %d", first)
			continue
		}
		seen[key] = f.line
		if i := slices.IndexFunc(names, func(s string) bool { return canonical(s) == key }); i >= 0 {
			d.decode(f.value, v.Field(i), join(path, spell(names[i])))
			continue
		}
		if rules.ignores(key) {
			continue
		}
		if u, ok := rules.unservedField(key); ok {
			if !f.value.off(u.off...) {
				d.refuse(f, join(path, spell(u.name)), u)
			}
			continue
		}
		if d.unknown != nil {
			d.unknown(join(path, f.name))
		} else {
			hint := ""
			if !d.r.full() {
				hint = didYouMean(f.name, names)
			}
			d.r.at(f.line, join(path, shown(f.name)), "unknown field%s", hint)
		}
	}
}

func (d *decoder) refuse(f field, path string, u unserved) {
	switch {
	case d.unknown != nil:
		d.unknown(path)
	case u.why != "":
		d.r.at(f.line, path, "%s", u.why)
	default:
		d.r.at(f.line, path, "not served by this version")
	}
}

// fieldNames are the json names of a struct's fields, by index.
func fieldNames(t reflect.Type) []string {
	out := make([]string, t.NumField())
	for i := range out {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		out[i] = name
	}
	return out
}

// didYouMean is a hint in the spelling of the writer, or empty when no name is near.
func didYouMean(name string, names []string) string {
	if len(name) > 64 {
		return ""
	}
	best, found := max(1, len(name)/4)+1, ""
	for _, candidate := range names {
		if d := distance(canonical(name), canonical(candidate)); d < best {
			best, found = d, candidate
		}
	}
	if found == "" {
		return ""
	}
	if name == strings.ToLower(name) {
		found = snake(found)
	}
	return " (did you mean " + found + "?)"
}

// distance is the number of letters to add, drop or change between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = min(diagonal, row[j], row[j+1]) + 1
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// snake spells LocalBindPort local_bind_port, and DestinationServiceID destination_service_id.
func snake(name string) string {
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	joined := func(i int) bool { return name[i] == '.' || name[i] >= '0' && name[i] <= '9' } // H2PING is h2ping
	var b strings.Builder
	for i := range len(name) {
		if upper(i) && i > 0 && !joined(i-1) && (!upper(i-1) || (!upper(i+1) && i+1 < len(name))) {
			b.WriteByte('_')
		}
		b.WriteByte(name[i])
	}
	return strings.ToLower(b.String())
}
