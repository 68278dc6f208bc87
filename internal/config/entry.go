package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// decodable is what every kind implements: [Entry], and validation that collects;
// check gives the same answer before and after Normalize.
type decodable interface {
	Entry
	check(r *report)
}

func newEntry(kind Kind) decodable {
	switch kind {
	case KindProxyDefaults:
		return &ProxyDefaults{}
	case KindServiceDefaults:
		return &ServiceDefaults{}
	case KindServiceIntentions:
		return &ServiceIntentions{}
	case KindServiceRouter:
		return &ServiceRouter{}
	case KindServiceSplitter:
		return &ServiceSplitter{}
	case KindServiceResolver:
		return &ServiceResolver{}
	case KindJWTProvider:
		return &JWTProvider{}
	case KindTrafficPolicy:
		return &TrafficPolicy{}
	case KindTrafficShift:
		return &TrafficShift{}
	case KindMesh:
		return &Mesh{}
	default:
		return nil
	}
}

// Kinds lists the kinds served, sorted.
func Kinds() []Kind {
	return []Kind{
		KindJWTProvider, KindMesh, KindProxyDefaults, KindServiceDefaults, KindServiceIntentions, KindServiceResolver,
		KindServiceRouter, KindServiceSplitter, KindTrafficPolicy, KindTrafficShift,
	}
}

// CheckKind says why a kind is not served, or nil.
func CheckKind(kind Kind) error {
	if newEntry(kind) != nil {
		return nil
	}
	names := make([]string, 0, len(Kinds()))
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	if slices.Contains(unservedKinds(), kind) {
		return fmt.Errorf("kind %q is not served by this version; served are %s", kind, strings.Join(names, ", "))
	}
	return fmt.Errorf("unknown kind %q; served are %s", cut(string(kind)), strings.Join(names, ", "))
}

// DecodeEntry reads one entry from a file: HCL, JSON or YAML by its extension.
// Text of another name, such as "-", is JSON when it begins with a brace, YAML
// when it begins with "name:", else HCL. The entry is normalized and valid, or
// the error holds every problem by line.
func DecodeEntry(filename string, data []byte) (Entry, error) {
	return decodeEntry(&report{file: filename}, formatOf(filename, data), data)
}

// DecodeEntryJSON reads one entry from a request body. Otherwise as [DecodeEntry].
func DecodeEntryJSON(data []byte) (Entry, error) {
	return decodeEntry(&report{}, formatJSON, data)
}

func decodeEntry(r *report, f format, data []byte) (Entry, error) {
	root := parse(f, data, r)
	if root == nil {
		return nil, r.err()
	}
	kind := root.get("kind")
	if kind == nil || kind.kind != textNode {
		r.at(root.lineOf("Kind"), "Kind", `want a string such as "service-defaults"`)
		return nil, r.err()
	}
	e := newEntry(Kind(kind.text))
	if e == nil {
		r.at(kind.line, "", "%s", CheckKind(Kind(kind.text)))
		return nil, r.err()
	}
	r.subject = subject(Kind(kind.text), root.str("name"))
	decode(r, root, e)
	if len(r.list) > 0 {
		return nil, r.err()
	}
	r.root = root
	e.check(r) // before Normalize, so that paths are those of the document
	e.Normalize()
	if err := r.err(); err != nil {
		return nil, err
	}
	return e, nil
}

// decode fills the struct that target points to.
func decode(r *report, n *node, target any) {
	d := decoder{r: r}
	d.decode(n, reflect.ValueOf(target).Elem(), "")
}

func subject(kind Kind, name string) string {
	if name == "" {
		return string(kind)
	}
	return string(kind) + " " + strconv.Quote(cut(name))
}

// validate is the one body of every kind's Validate.
func validate(e decodable) error {
	r := &report{subject: subject(e.EntryKind(), e.EntryName())}
	e.check(r)
	return r.first()
}

// EncodeEntry is the entry as Consul's API shows it, in one line without its
// indexes: the same bytes for equal entries. [DecodeEntryJSON] is the inverse.
func EncodeEntry(e Entry) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("%s: cannot be written as JSON: %w", subject(e.EntryKind(), e.EntryName()), err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
