package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	yamlv3 "go.yaml.in/yaml/v3"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/docs"
	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// OpenAPI is docs/openapi.yaml, for tests.
type OpenAPI struct {
	root       map[string]any
	Operations map[string]map[string]any // by "METHOD path"
}

// ReadOpenAPI reads the document.
func ReadOpenAPI(t *testing.T) *OpenAPI {
	t.Helper()
	d := &OpenAPI{Operations: map[string]map[string]any{}}
	if err := yamlv3.Unmarshal(docs.OpenAPI, &d.root); err != nil {
		t.Fatal(err)
	}
	for path, item := range d.root["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			d.Operations[strings.ToUpper(method)+" "+path] = op.(map[string]any)
		}
	}
	return d
}

// at follows keys.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// Answer is the schema of an operation's JSON answer, Request that of its body; nil for none.
func (d *OpenAPI) Answer(op string) any {
	return at(d.Operations[op], "responses", "200", "content", "application/json", "schema")
}

// Request is described at Answer.
func (d *OpenAPI) Request(op string) any {
	return at(d.Operations[op], "requestBody", "content", "application/json", "schema")
}

// deref follows references; what stands beside one, a description, says nothing of values.
func (d *OpenAPI) deref(schema any) (map[string]any, error) {
	for {
		m, ok := schema.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%v: no schema", schema)
		}
		ref, ok := m["$ref"].(string)
		if !ok {
			return m, nil
		}
		path := strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		if schema = at(d.root, path...); schema == nil {
			return nil, fmt.Errorf("%s: leads nowhere", ref)
		}
	}
}

// words are the keywords of JSON Schema that are understood; the document uses no others.
var words = []string{"$ref", "type", "enum", "required", "properties", "additionalProperties", "unevaluatedProperties", "allOf", "items", "maxItems",
	"minimum", "maximum", "default", "format", "description"}

// Check says what a decoded JSON value has that the schema does not allow.
func (d *OpenAPI) Check(schema, value any) error {
	_, err := d.check("", schema, value)
	return err
}

// check gives the names of properties that the schema has said something of.
func (d *OpenAPI) check(where string, schema, value any) (known map[string]bool, err error) {
	m, err := d.deref(schema)
	if err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (map[string]bool, error) {
		return nil, fmt.Errorf("%s: %s", where+"/", fmt.Sprintf(format, args...))
	}
	for word := range m {
		if !slices.Contains(words, word) {
			return fail("keyword %q is not understood", word)
		}
	}
	if types := listOf(m["type"]); len(types) > 0 && !slices.ContainsFunc(types, func(t any) bool { return isA(value, t.(string)) }) {
		return fail("%v is no %v", value, types)
	}
	if values := listOf(m["enum"]); len(values) > 0 && !slices.Contains(values, value) {
		return fail("%v is none of %v", value, values)
	}
	if m["format"] == "date-time" {
		if _, err := time.Parse(time.RFC3339, fmt.Sprint(value)); err != nil {
			return fail("%v", err)
		}
	}
	if n, ok := value.(float64); ok {
		if least, ok := number(m["minimum"]); ok && n < least {
			return fail("%v is below %v", n, least)
		}
		if most, ok := number(m["maximum"]); ok && n > most {
			return fail("%v is above %v", n, most)
		}
	}
	if list, ok := value.([]any); ok && m["items"] != nil {
		for i, v := range list {
			if _, err := d.check(fmt.Sprintf("%s/%d", where, i), m["items"], v); err != nil {
				return nil, err
			}
		}
	}
	known = map[string]bool{}
	for _, part := range listOf(m["allOf"]) {
		more, err := d.check(where, part, value)
		if err != nil {
			return nil, err
		}
		maps.Copy(known, more)
	}
	object, ok := value.(map[string]any)
	if !ok {
		return known, nil
	}
	for _, name := range listOf(m["required"]) {
		if _, ok := object[name.(string)]; !ok {
			return fail("%s is missing", name)
		}
	}
	properties, _ := m["properties"].(map[string]any)
	for name, v := range object {
		below := where + "/" + name
		switch more := m["additionalProperties"]; {
		case properties[name] != nil:
			known[name] = true
			_, err = d.check(below, properties[name], v)
		case more == false || m["unevaluatedProperties"] == false && !known[name]:
			err = fmt.Errorf("%s: is not known", below)
		case more != nil:
			_, err = d.check(below, more, v)
		}
		if err != nil {
			return nil, err
		}
	}
	return known, nil
}

func listOf(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

func isA(v any, kind string) bool {
	switch v := v.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case string:
		return kind == "string"
	case float64:
		return kind == "number" || kind == "integer" && v == math.Trunc(v)
	case []any:
		return kind == "array"
	case map[string]any:
		return kind == "object"
	}
	return false
}

// Every endpoint of our own is in the document, and the reverse.
func TestOpenAPIHasAllEndpoints(t *testing.T) {
	d := ReadOpenAPI(t)
	served := map[string]bool{}
	s := &Server{}
	for _, list := range []map[string]bool{keysOf(s.direct()), keysOf(s.asked())} {
		for pattern := range list {
			served[pattern] = true
			if d.Operations[pattern] == nil {
				t.Errorf("%s is not in docs/openapi.yaml", pattern)
			}
		}
	}
	for _, pattern := range consulapi.Patterns() {
		if !strings.Contains(pattern, " /v1/crossfade/") {
			continue
		}
		found := false
		for op := range d.Operations {
			if op == pattern || strings.HasSuffix(pattern, "/") && strings.HasPrefix(op, pattern) {
				served[op], found = true, true
			}
		}
		if !found {
			t.Errorf("%s is not in docs/openapi.yaml", pattern)
		}
	}
	ids := map[any]string{}
	for op, what := range d.Operations {
		if !served[op] {
			t.Errorf("docs/openapi.yaml has %s, and nobody serves it", op)
		}
		if id := what["operationId"]; id == nil || ids[id] != "" {
			t.Errorf("%s: operationId %v: want one that no other has (%s)", op, id, ids[id])
		} else {
			ids[id] = op
		}
		declared := map[string]bool{}
		for _, p := range listOf(what["parameters"]) {
			m, err := d.deref(p)
			if err != nil {
				t.Fatalf("%s: %v", op, err)
			}
			if m["in"] == "path" {
				declared["{"+m["name"].(string)+"}"] = true
			}
		}
		for part := range strings.SplitSeq(op, "/") {
			if strings.HasPrefix(part, "{") != declared[part] {
				t.Errorf("%s: %s is no declared parameter", op, part)
			}
		}
	}
}

func keysOf[V any](m map[string]V) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// The schemas have the fields of the types, no more and no fewer, and require those that
// are always there.
func TestOpenAPIHasAllFields(t *testing.T) {
	d := ReadOpenAPI(t)
	compared := map[string]bool{}
	for name, of := range map[string]any{
		"PairDetail": api.PairDetail{}, "PairRow": api.Pair{}, "Telemetry": api.Telemetry{}, "ShiftRequest": api.ShiftRequest{}, "RevertRequest": api.RevertRequest{},
		"Changed": api.Changed{}, "Applied": api.Applied{}, "Plan": planAnswer{}, "PlanRequest": planRequest{}, "Check": checkAnswer{}, "Version": store.Version{},
		"Chain": routing.View{}, "Sidecar": sidecarStatus{}, "Proxy": registeredProxy{}, "Token": tokens.Token{}, "CreatedToken": createdToken{}, "TokenRequest": tokenRequest{},
		"AuditEntry": tokens.Entry{}, "StepLog": stepLog{}, "CatalogHeld": api.CatalogHeld{}, "HeldDecision": api.HeldDecision{},
	} {
		schema := at(d.root, "components", "schemas", name)
		if schema == nil {
			t.Errorf("no schema %s", name)
			continue
		}
		d.compare(t, name, schema, reflect.TypeOf(of), !strings.HasSuffix(name, "Request"), compared)
	}
}

// compare holds a schema to a type.
func (d *OpenAPI) compare(t *testing.T, where string, schema any, of reflect.Type, answer bool, done map[string]bool) {
	t.Helper()
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	key := fmt.Sprintf("%v %p", of, schema)
	if done[key] {
		return
	}
	done[key] = true
	m, err := d.deref(schema)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	for word := range m {
		if !slices.Contains(words, word) {
			t.Errorf("%s: keyword %q is not understood", where, word)
		}
	}
	switch of {
	case reflect.TypeFor[time.Time](), reflect.TypeFor[json.RawMessage]():
		return
	}
	switch of.Kind() {
	case reflect.Slice:
		if m["items"] == nil {
			t.Errorf("%s: want a list", where)
			return
		}
		d.compare(t, where+"[]", m["items"], of.Elem(), answer, done)
	case reflect.Map:
		if m["additionalProperties"] == nil {
			t.Errorf("%s: want a map", where)
			return
		}
		d.compare(t, where+"{}", m["additionalProperties"], of.Elem(), answer, done)
	case reflect.Struct:
		properties, required := map[string]any{}, map[string]bool{}
		d.collect(t, schema, properties, required)
		if len(properties) == 0 {
			return // somebody else's: described elsewhere
		}
		fields := map[string]bool{}
		for _, f := range reflect.VisibleFields(of) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous && name == "" || !f.IsExported() || name == "-" {
				continue
			}
			if name == "" {
				name = f.Name
			}
			fields[name] = true
			if properties[name] == nil {
				t.Errorf("%s has no %s", where, name)
				continue
			}
			if always := options == ""; answer && always != required[name] {
				t.Errorf("%s: %s is always there: %v; required: %v", where, name, always, required[name])
			}
			d.compare(t, where+"."+name, properties[name], f.Type, answer, done)
		}
		for name := range properties {
			if !fields[name] {
				t.Errorf("%s has %s, and %v has not", where, name, of)
			}
		}
	}
}

// collect gathers the properties of a schema and its parts.
func (d *OpenAPI) collect(t *testing.T, schema any, properties map[string]any, required map[string]bool) {
	t.Helper()
	m, err := d.deref(schema)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range listOf(m["allOf"]) {
		d.collect(t, part, properties, required)
	}
	of, _ := m["properties"].(map[string]any)
	maps.Copy(properties, of)
	for _, name := range listOf(m["required"]) {
		required[name.(string)] = true
	}
}
