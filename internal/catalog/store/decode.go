package store

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unique"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// Services and checks are most of a large registry, and [encoding/json] most of what it takes to read
// them. What [encode] wrote of them is read here member by member, and anything else by [encoding/json].

// alike holds once what many rows have. Safe for concurrent use; nil holds texts alone.
type alike struct {
	mu     sync.Mutex
	texts  map[string]string
	values map[reflect.Type]map[string]any // what was decoded, by its JSON
	block  *strings.Builder                // of texts that one row has, which share its memory
}

// blockSize is that of a block, in bytes. A block lasts as long as any of its texts: of a registry whose rows all go
// but for a few, what its texts took at the start may stay.
const blockSize = 4 << 10

func newAlike() *alike {
	return &alike{texts: map[string]string{}, values: map[reflect.Type]map[string]any{}, block: &strings.Builder{}}
}

// text is b as a string that others have, too.
func (a *alike) text(b []byte) string {
	if a == nil {
		return unique.Make(string(b)).Value()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.texts[string(b)]
	if !ok {
		s = unique.Make(string(b)).Value()
		a.texts[s] = s
	}
	return s
}

// own is b as a string that no other row has.
func (a *alike) own(b []byte) string {
	if a == nil || len(b) > blockSize/4 {
		return string(b)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.block.Cap()-a.block.Len() < len(b) {
		a.block = &strings.Builder{}
		a.block.Grow(blockSize)
	}
	from := a.block.Len()
	a.block.Write(b)
	return a.block.String()[from:]
}

// value decodes into out, which is not to be changed afterwards.
func value[T any](a *alike, b []byte, out *T) bool {
	if a == nil {
		return json.Unmarshal(b, out) == nil
	}
	t := reflect.TypeFor[T]()
	a.mu.Lock()
	known, ok := a.values[t][string(b)]
	a.mu.Unlock()
	if ok {
		*out = known.(T)
		return true
	}
	if json.Unmarshal(b, out) != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.values[t] == nil {
		a.values[t] = map[string]any{}
	}
	a.values[t][string(b)] = *out
	return true
}

// members calls f with the name and the JSON of each member of an object, until f returns false. So
// does members where b is anything else, or has white space or names that [encode] does not write.
func members(b []byte, f func(name string, value []byte) bool) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	b = b[1 : len(b)-1]
	for len(b) > 0 {
		n := span(b)
		if n < 2 || b[0] != '"' || len(b) <= n || b[n] != ':' {
			return false
		}
		name := b[1 : n-1]
		b = b[n+1:]
		if n = span(b); n == 0 || !f(string(name), b[:n]) {
			return false
		}
		switch b = b[n:]; {
		case len(b) == 0:
		case b[0] == ',' && len(b) > 1:
			b = b[1:]
		default:
			return false
		}
	}
	return true
}

// span is the length of the JSON value that b begins with, if it is one: what is in it is not looked at.
// 0: there is none.
func span(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if i >= len(b) {
				return 0
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
			continue
		default:
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	if depth > 0 {
		return 0
	}
	return len(b)
}

// The following read a value into out, or return false where it is none of what encode writes.

// plain is what stands between the quotes of a string without escapes.
func plain(b []byte) ([]byte, bool) {
	if len(b) < 2 || b[0] != '"' || !ordinary(b) {
		return nil, false
	}
	return b[1 : len(b)-1], true
}

// ordinary reports whether text in JSON is printable ASCII and has no escapes.
func ordinary(b []byte) bool {
	for _, c := range b {
		if c == '\\' || c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// text reads one that others have, too.
func text[T ~string](a *alike, b []byte, out *T) bool {
	s, ok := plain(b)
	if ok {
		*out = T(a.text(s))
	}
	return ok
}

// own reads one that no other row has.
func own(a *alike, b []byte, out *string) bool {
	s, ok := plain(b)
	if ok {
		*out = a.own(s)
	}
	return ok
}

// within reads one that is mostly a part of another text of the row.
func within(a *alike, b []byte, whole string, out *string) bool {
	s, ok := plain(b)
	if !ok {
		return false
	}
	if i := strings.Index(whole, string(s)); i >= 0 && len(s) > 0 {
		*out = whole[i : i+len(s)]
	} else {
		*out = a.own(s)
	}
	return true
}

func number[T int | uint64](b []byte, out *T) bool {
	if len(b) == 0 || b[0] < '0' || b[0] > '9' || len(b) > 1 && b[0] == '0' {
		return false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	*out = T(n)
	return err == nil
}

func truth(b []byte, out *bool) bool {
	*out = bytes.Equal(b, []byte("true"))
	return *out || bytes.Equal(b, []byte("false"))
}

func (a *alike) serviceRow(b []byte) (*serviceRow, bool) {
	row := &serviceRow{}
	return row, members(b, func(name string, v []byte) bool {
		switch name {
		case "Node":
			return text(a, v, &row.Node)
		case "Service":
			return a.service(v, &row.Service)
		}
		return false
	})
}

func (a *alike) service(b []byte, s *catalog.Service) bool {
	return members(b, func(name string, v []byte) bool {
		switch name {
		case "Kind":
			return text(a, v, &s.Kind)
		case "ID":
			return own(a, v, &s.ID)
		case "Service":
			return text(a, v, &s.Name)
		case "Tags":
			return value(a, v, &s.Tags)
		case "Address":
			return text(a, v, &s.Address)
		case "Port":
			return number(v, &s.Port)
		case "SocketPath":
			return own(a, v, &s.SocketPath)
		case "TaggedAddresses":
			return value(nil, v, &s.TaggedAddresses)
		case "Meta":
			return value(a, v, &s.Meta)
		case "Weights":
			return value(a, v, &s.Weights)
		case "EnableTagOverride":
			return truth(v, &s.EnableTagOverride)
		case "Proxy":
			s.Proxy = &catalog.Proxy{}
			return a.proxy(v, s.ID, s.Proxy)
		case "Connect":
			return value(a, v, &s.Connect)
		case "CreateIndex":
			return number(v, &s.CreateIndex)
		case "ModifyIndex":
			return number(v, &s.ModifyIndex)
		}
		return false
	})
}

func (a *alike) proxy(b []byte, id string, p *catalog.Proxy) bool {
	return members(b, func(name string, v []byte) bool {
		switch name {
		case "DestinationServiceName":
			return text(a, v, &p.DestinationServiceName)
		case "DestinationServiceID":
			return within(a, v, id, &p.DestinationServiceID)
		case "LocalServiceAddress":
			return text(a, v, &p.LocalServiceAddress)
		case "LocalServicePort":
			return number(v, &p.LocalServicePort)
		case "LocalServiceSocketPath":
			return own(a, v, &p.LocalServiceSocketPath)
		case "Mode":
			return text(a, v, &p.Mode)
		case "Config":
			return value(a, v, &p.Config)
		case "Upstreams":
			return value(a, v, &p.Upstreams)
		case "Expose":
			return value(a, v, &p.Expose)
		}
		return false
	})
}

func (a *alike) checkRow(b []byte) (*checkRow, bool) {
	row := &checkRow{}
	return row, members(b, func(name string, v []byte) bool {
		switch name {
		case "Check":
			return a.check(v, &row.Check)
		case "Definition":
			return value(nil, v, &row.Definition)
		}
		return false
	})
}

func (a *alike) check(b []byte, c *catalog.Check) bool {
	return members(b, func(name string, v []byte) bool {
		switch name {
		case "Node":
			return text(a, v, &c.Node)
		case "CheckID":
			return own(a, v, &c.CheckID)
		case "Name":
			return text(a, v, &c.Name)
		case "Status":
			return text(a, v, &c.Status)
		case "Notes":
			return text(a, v, &c.Notes)
		case "Output":
			return own(a, v, &c.Output)
		case "ServiceID":
			return within(a, v, c.CheckID, &c.ServiceID)
		case "ServiceName":
			return text(a, v, &c.ServiceName)
		case "ServiceTags":
			return value(a, v, &c.ServiceTags)
		case "Type":
			return text(a, v, &c.Type)
		case "Interval":
			return text(a, v, &c.Interval)
		case "Timeout":
			return text(a, v, &c.Timeout)
		case "CreateIndex":
			return number(v, &c.CreateIndex)
		case "ModifyIndex":
			return number(v, &c.ModifyIndex)
		}
		return false
	})
}
