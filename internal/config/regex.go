package config

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a regular expression. Envoy compiles each with RE2, and refuses the whole
// configuration that holds a program larger than its runtime key
// re2.max_program_size.error_level says, which sidecars are told to be MaxRegexProgram.
const (
	maxRegex        = 1024
	MaxRegexProgram = 1000 // instructions
)

// regex checks a regular expression in RE2's syntax; "" is none.
func (r *report) regex(path, text string) {
	switch {
	case text == "":
	case len(text) > maxRegex:
		r.addf(path, "longer than %d bytes", maxRegex)
	case strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }):
		r.addf(path, "%q: want printable ASCII", cut(text))
	default:
		if err := checkRegex(text); err != nil {
			r.addf(path, "%q: %s", cut(text), shorten(oneLine(err.Error()), maxReason))
		}
	}
}

func checkRegex(text string) error {
	if err := checkEscapes(text); err != nil {
		return err
	}
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return err
	}
	if n := programSize(re) + 5; n > MaxRegexProgram {
		return fmt.Errorf("compiles to some %d instructions, more than the limit of %d", n, MaxRegexProgram)
	}
	return nil
}

// checkEscapes refuses escapes that Go's parser knows and RE2, which reads bytes in Envoy, does not.
func checkEscapes(text string) error {
	for {
		i := strings.IndexByte(text, '\\')
		if i < 0 || i+1 == len(text) {
			return nil
		}
		escape, rest := text[i+1], text[i+2:]
		text = rest
		switch escape {
		case 'Q':
			_, text, _ = strings.Cut(rest, `\E`)
		case 'x':
			digits, _, ok := strings.Cut(strings.TrimPrefix(rest, "{"), "}")
			if n, err := strconv.ParseUint(digits, 16, 32); strings.HasPrefix(rest, "{") && ok && err == nil && n > maxByte {
				return fmt.Errorf(`\x{%s}: want a byte, at most \xff`, digits)
			}
		case 'p', 'P':
			name := rest[:min(1, len(rest))]
			if inner, ok := strings.CutPrefix(rest, "{"); ok {
				name, _, _ = strings.Cut(inner, "}")
			}
			if !slices.Contains(categories(), strings.TrimPrefix(name, "^")) {
				return fmt.Errorf(`\%c{%s}: want a general category such as L or Nd`, escape, cut(name))
			}
		}
	}
}

// categories are Unicode's general categories that RE2 knows.
func categories() []string {
	return strings.Fields("C Cc Cf Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm So Z Zl Zp Zs")
}

const maxByte = 0xff

// programSize is no less than how many instructions RE2 makes of an expression, but
// for those of the frame. The parser has bounded repetitions.
func programSize(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += programSize(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		return len(re.Rune)
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune) && re.Rune[i] <= maxByte; i += 2 {
			n++
		}
		return max(n, 1)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return 2
	case syntax.OpCapture:
		return n + 2
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest:
		return n + loop(re)
	case syntax.OpRepeat:
		if re.Max < 0 {
			return n*max(re.Min, 1) + loop(re)
		}
		return n*re.Max + (re.Max-re.Min)*loop(re)
	case syntax.OpConcat:
		return n
	case syntax.OpAlternate:
		return n + len(re.Sub) - 1
	default:
		return n + 1
	}
}

// loop is what going round again, or past, costs.
func loop(re *syntax.Regexp) int {
	if nullable(re.Sub[0]) {
		return 4
	}
	return 2
}

// nullable reports whether re can match nothing at all.
func nullable(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpLiteral, syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpNoMatch:
		return false
	case syntax.OpCapture, syntax.OpPlus:
		return nullable(re.Sub[0])
	case syntax.OpRepeat:
		return re.Min == 0 || nullable(re.Sub[0])
	case syntax.OpConcat:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !nullable(sub) })
	case syntax.OpAlternate:
		return slices.ContainsFunc(re.Sub, nullable)
	default:
		return true
	}
}
