package config

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// hclReader parses the literal part of HCL 1 and 2 alike, from the tokens of
// hclsyntax: its own parser refuses one-line nested blocks and blocks inside
// objects, which Consul's files are full of. Line ends are not significant, and
// "name = {…}" and "name {…}" may stand in blocks and objects. After the first
// syntax error nothing more is read.
type hclReader struct {
	tokens hclsyntax.Tokens
	pos    int
	r      *report
	failed bool
}

func parseHCL(data []byte, r *report) *node {
	tokens, diags := hclsyntax.LexConfig(data, "", hcl.InitialPos)
	if len(diags) > 0 {
		d, line := diags[0], 0
		if d.Subject != nil {
			line = d.Subject.Start.Line
		}
		r.at(line, "", "not valid HCL: %s", oneLine(d.Summary+": "+d.Detail))
		return nil
	}
	p := &hclReader{r: r}
	for _, t := range tokens {
		if t.Type != hclsyntax.TokenNewline && t.Type != hclsyntax.TokenComment {
			p.tokens = append(p.tokens, t)
		}
	}
	n := p.body(hclsyntax.TokenEOF, 1, 0)
	if p.failed {
		return nil
	}
	return n
}

func (p *hclReader) peek() hclsyntax.Token { return p.tokens[p.pos] }

// next takes a token; the last, EOF, is never passed.
func (p *hclReader) next() hclsyntax.Token {
	t := p.tokens[p.pos]
	if p.pos < len(p.tokens)-1 {
		p.pos++
	}
	return t
}

func (p *hclReader) take(want hclsyntax.TokenType) bool {
	if p.peek().Type != want {
		return false
	}
	p.next()
	return true
}

func (p *hclReader) fail(t hclsyntax.Token, format string, args ...any) {
	if !p.failed {
		p.r.at(t.Range.Start.Line, "", "not valid HCL: "+format, args...)
	}
	p.failed = true
}

func spelled(t hclsyntax.Token) string {
	if t.Type == hclsyntax.TokenEOF {
		return "the end"
	}
	return strconv.Quote(cut(string(t.Bytes)))
}

// body reads members up to end, which it takes. Blocks of one name become a list.
func (p *hclReader) body(end hclsyntax.TokenType, line, depth int) *node {
	m := newMembers(line, p.r)
	blocks := map[string]int{} // name -> index of its field
	for !p.take(end) {
		f := p.member(depth)
		if p.failed {
			return nil
		}
		at, again := blocks[f.name]
		switch {
		case f.value.block && again:
			m.n.fields[at].value = p.repeat(m.n.fields[at].value, f)
		default:
			if m.add(f) && f.value.block {
				blocks[f.name] = len(m.n.fields) - 1
			}
		}
		p.take(hclsyntax.TokenComma)
	}
	return m.n
}

// maxLabels bounds the labels of blocks of one name, which are searched one by one.
const maxLabels = 1000

// repeat joins a block with earlier ones of its name: labelled ones by label,
// others as a list.
func (p *hclReader) repeat(before *node, f field) *node {
	if before.labelled() && f.value.labelled() {
		label := f.value.fields[0]
		for i, b := range before.fields {
			if b.name == label.name {
				before.fields[i].value = p.repeat(b.value, label)
				return before
			}
		}
		if before.fields = append(before.fields, label); len(before.fields) > maxLabels {
			p.r.at(label.line, shown(f.name), "more than %d block labels", maxLabels)
			p.failed = true
		}
		return before
	}
	if before.kind == listNode {
		before.items = append(before.items, f.value)
		return before
	}
	return &node{kind: listNode, line: before.line, block: true, items: []*node{before, f.value}}
}

func (p *hclReader) member(depth int) field {
	t := p.peek()
	f := field{name: p.key(), line: t.Range.Start.Line}
	var labels []string
	for !p.failed && (p.peek().Type == hclsyntax.TokenOQuote || p.peek().Type == hclsyntax.TokenIdent) && len(labels) < maxDepth {
		labels = append(labels, p.key())
	}
	switch t := p.next(); {
	case p.failed:
	case t.Type == hclsyntax.TokenOBrace:
		if depth+len(labels) >= maxDepth {
			tooDeep(p.r, f.line)
			p.failed = true
			return f
		}
		f.value = p.body(hclsyntax.TokenCBrace, t.Range.Start.Line, depth+len(labels)+1)
		if p.failed {
			return f
		}
		f.value.block = true
		for _, label := range slices.Backward(labels) {
			f.value = &node{kind: objectNode, block: true, fields: []field{{name: label, line: f.line, value: f.value}}}
		}
	case len(labels) == 0 && (t.Type == hclsyntax.TokenEqual || t.Type == hclsyntax.TokenColon):
		f.value = p.value(depth + 1)
	default:
		p.fail(t, "want = or { after %s, got %s", shown(f.name), spelled(t))
	}
	return f
}

func (p *hclReader) key() string {
	switch t := p.next(); t.Type {
	case hclsyntax.TokenIdent:
		return string(t.Bytes)
	case hclsyntax.TokenOQuote:
		return p.quoted()
	default:
		p.fail(t, "want a name, got %s", spelled(t))
		return ""
	}
}

func (p *hclReader) value(depth int) *node {
	t := p.next()
	n := &node{line: t.Range.Start.Line}
	switch t.Type {
	case hclsyntax.TokenOQuote:
		n.kind, n.text = textNode, p.quoted()
	case hclsyntax.TokenOHeredoc:
		n.kind, n.text = textNode, p.heredoc(strings.HasPrefix(string(t.Bytes), "<<-"))
	case hclsyntax.TokenMinus, hclsyntax.TokenNumberLit:
		literal := string(t.Bytes)
		if t.Type == hclsyntax.TokenMinus {
			if p.peek().Type != hclsyntax.TokenNumberLit {
				p.fail(t, "want a number after -, got %s", spelled(p.peek()))
				return n
			}
			literal = "-" + string(p.next().Bytes)
		}
		return number(literal, n.line, p.r)
	case hclsyntax.TokenIdent:
		switch word := string(t.Bytes); word {
		case "true", "false":
			n.kind, n.truth = boolNode, word == "true"
		case "null":
		default:
			p.fail(t, "%s: only literal values are read here; a string needs quotes", spelled(t))
		}
	case hclsyntax.TokenOBrack, hclsyntax.TokenOBrace:
		if depth > maxDepth {
			tooDeep(p.r, n.line)
			p.failed = true
			return n
		}
		if t.Type == hclsyntax.TokenOBrace {
			return p.body(hclsyntax.TokenCBrace, n.line, depth)
		}
		n.kind = listNode
		for !p.failed && !p.take(hclsyntax.TokenCBrack) {
			n.items = append(n.items, p.value(depth+1))
			if next := p.peek(); !p.failed && !p.take(hclsyntax.TokenComma) && next.Type != hclsyntax.TokenCBrack {
				p.fail(next, "want , or ] in a list, got %s", spelled(next))
			}
		}
	default:
		p.fail(t, "want a value, got %s", spelled(t))
	}
	return n
}

// quoted reads the rest of a quoted string.
func (p *hclReader) quoted() string {
	var b strings.Builder
	for {
		switch t := p.next(); t.Type {
		case hclsyntax.TokenQuotedLit:
			s, ok := unescape(string(t.Bytes))
			if !ok {
				p.fail(t, "unknown escape in string %s", spelled(t))
				return ""
			}
			b.WriteString(s)
		case hclsyntax.TokenCQuote:
			return b.String()
		case hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			p.fail(t, "templates are not evaluated here; write $%s for a literal %s", string(t.Bytes), string(t.Bytes))
			return ""
		default:
			p.fail(t, "want the end of a string, got %s", spelled(t))
			return ""
		}
	}
}

// heredoc reads the rest of a heredoc. With flush, the least indentation of its lines goes.
func (p *hclReader) heredoc(flush bool) string {
	var b strings.Builder
	for {
		t := p.next()
		if t.Type == hclsyntax.TokenStringLit {
			b.Write(t.Bytes)
			continue
		}
		if t.Type != hclsyntax.TokenCHeredoc {
			p.fail(t, "templates are not evaluated here, got %s", spelled(t))
			return ""
		}
		break
	}
	text := literalBraces(b.String())
	if !flush {
		return text
	}
	least := -1
	lines := strings.SplitAfter(text, "\n")
	for _, line := range lines {
		if rest := strings.TrimLeft(line, " \t"); rest != "" && (least < 0 || len(line)-len(rest) < least) {
			least = len(line) - len(rest)
		}
	}
	for i, line := range lines {
		if len(line) > least && least > 0 {
			lines[i] = line[least:]
		}
	}
	return strings.Join(lines, "")
}

func literalBraces(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "$${", "${"), "%%{", "%{")
}

// unescape resolves the escapes of a quoted literal: \n \r \t \" \\ \uXXXX \UXXXXXXXX $${ %%{.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			b.WriteString(literalBraces(s))
			return b.String(), true
		}
		b.WriteString(literalBraces(s[:i]))
		if s = s[i+1:]; s == "" {
			return "", false
		}
		digits := 0
		switch s[0] {
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case '"', '\\':
			b.WriteByte(s[0])
		case 'u':
			digits = 4
		case 'U':
			digits = 8
		default:
			return "", false
		}
		if digits > 0 {
			if len(s) <= digits {
				return "", false
			}
			code, err := strconv.ParseUint(s[1:1+digits], 16, 32)
			if err != nil || code > utf8.MaxRune {
				return "", false
			}
			b.WriteRune(rune(code))
		}
		s = s[1+digits:]
	}
}
