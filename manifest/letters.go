package manifest

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"bocage.dev/bocage"
)

// tell adds to faults about a text or a key what the eye does not see in it: that
// a letter is of another alphabet, or that a character cannot be seen at all.
func (t *Tree) tell(faults bocage.Faults) bocage.Faults {
	for i, f := range faults {
		if found := odd(lastStep(f.Field)); found != "" {
			faults[i].Message += "; the name holds " + found
			continue
		}
		if n := t.find(f.Field); n != nil && n.Kind == scalar && !strings.HasPrefix(f.Message, "is unknown") {
			if found := odd(n.Value); found != "" {
				faults[i].Message += "; it holds " + found
			}
		}
	}
	return faults
}

// quote has faults about a text that is true or false, for want of quotes, say so.
func (t *Tree) quote(faults bocage.Faults) bocage.Faults {
	for i, f := range faults {
		if n := t.find(f.Field); n != nil && n.Tag == "!!bool" && n.boolean {
			faults[i].Message = mustQuote(n.Value)
		}
	}
	return faults
}

// unquoted finds the labels of an object of a foreign kind that have another name or
// no text in Kubernetes, for want of quotes.
func (t *Tree) unquoted() bocage.Faults {
	var faults bocage.Faults
	for _, path := range []string{"metadata.labels", "spec.template.metadata.labels", "spec.jobTemplate.spec.template.metadata.labels"} {
		n := t.find(path)
		if n == nil || n.Kind != mapping {
			continue
		}
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.boolean && len(key.Value) > 1 {
				faults = append(faults, bocage.Fault{Field: path, Message: key.Value + " " + mustQuote(key.Value), Source: position(t.name, key.Line)})
			}
			if value.boolean && !value.letter() {
				faults = append(faults, bocage.Fault{Field: path + "[" + key.Value + "]", Message: mustQuote(value.Value), Source: position(t.name, value.Line)})
			}
		}
	}
	return faults
}

// mustQuote says what to do about a word that is no text in Kubernetes.
func mustQuote(word string) string {
	return fmt.Sprintf("is true or false where text is needed: quote it, as %q", word)
}

// find returns the value at a path, or nil.
func (t *Tree) find(field string) *node {
	n := t.node
	for n != nil {
		var step string
		if step, field = nextStep(field); step == "" {
			return n
		}
		n, _ = n.child(step, 0)
	}
	return nil
}

// lastStep is the last name of a path.
func lastStep(field string) string {
	last := ""
	for {
		var step string
		if step, field = nextStep(field); step == "" {
			return last
		}
		last = step
	}
}

// odd describes the first character of a text that no name may hold although it
// may look as if it could: one outside ASCII, or one without a shape. NUL has a
// fault of its own.
func odd(text string) string {
	position := 0
	for _, r := range text {
		position++
		if r > unicode.MaxASCII || r < ' ' && r != 0 || r == 0x7f {
			return fmt.Sprintf("%U (%s) as character %d of %d", r, nature(r), position, utf8.RuneCountInString(text))
		}
	}
	return ""
}

// nature says what kind of character it is.
func nature(r rune) string {
	switch {
	case r == utf8.RuneError:
		return "a damaged character"
	case unicode.Is(unicode.Bidi_Control, r):
		return "invisible: it turns the direction of what follows"
	case unicode.Is(unicode.Cc, r):
		return "a control character"
	case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r), unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r):
		return "invisible"
	case unicode.IsSpace(r), unicode.Is(unicode.Zs, r):
		return "a kind of space"
	case unicode.Is(unicode.Mn, r):
		return "a mark on the character before it"
	}
	for script, table := range unicode.Scripts {
		if script != "Common" && script != "Inherited" && unicode.Is(table, r) {
			return strings.ReplaceAll(script, "_", " ")
		}
	}
	return "not of ASCII"
}
