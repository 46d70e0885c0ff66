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
