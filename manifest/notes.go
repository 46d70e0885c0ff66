package manifest

import (
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// Notes are about what Check, or whoever read an object of another kind, took otherwise
// than kubectl does or than most people would: y and n without quotes, and nulls that
// Kubernetes reads as something. They are no faults.
func (t *Tree) Notes() bocage.Faults { return slices.Clone(t.notes) }

func (t *Tree) note(n *node, path, format string, args ...any) {
	if len(t.notes) < maxFaults {
		t.notes = append(t.notes, bocage.Fault{Field: path, Message: fmt.Sprintf(format, args...), Source: position(t.name, n.Line)})
	}
}

// noteLetter says that y or n without quotes was read as text. Programs that write
// YAML leave the quotes out, and names are a letter as often as not; to kubectl the
// words are true and false, of which it makes a key, but no other text.
func (t *Tree) noteLetter(n *node, path string, key bool) {
	other := strings.ToLower(n.Value) == "y"
	if key {
		t.note(n, path, "%[1]s without quotes is read as the key %[1]s; kubectl reads it as the key %[2]t: quote it", n.Value, other)
		return
	}
	t.note(n, path, "%[1]s without quotes is read as the text %[1]s; kubectl reads it as %[2]t and refuses it: quote it", n.Value, other)
}

// mostNotes is how many notes of one kind are told of a file.
const mostNotes = 10

// tellNotes passes on the notes about one file: those about letters as one.
func tellNotes(notes bocage.Faults, tell func(bocage.Fault)) {
	if tell == nil {
		return
	}
	var letter *bocage.Fault
	letters, others := 0, 0
	for i, note := range notes {
		switch {
		case !strings.Contains(note.Message, " without quotes is read as the "):
			if others++; others <= mostNotes {
				tell(note)
			}
		case letter == nil:
			letter = &notes[i]
		default:
			letters++
		}
	}
	if others > mostNotes {
		tell(bocage.Fault{Message: fmt.Sprintf("and %d more such notes", others-mostNotes)})
	}
	if letter == nil {
		return
	}
	one := bocage.Fault{Source: letter.Source, Message: letter.Message}
	if letters > 0 {
		one.Message += fmt.Sprintf(" (and %d more in this file)", letters)
	}
	tell(one)
}

// What is read of objects of kinds that are not declared here, and so matters if it is y
// or n: by the name of the field that it is in.
const (
	foreignBooleans = " hostNetwork controller "
	foreignTexts    = " name namespace nodeName "
	foreignMaps     = " labels annotations selector matchLabels "
)

// foreignLetters reads y and n in an object of another kind as what its fields need.
func (t *Tree) foreignLetters() {
	if !t.letters {
		return
	}
	var within func(n *node, path string)
	within = func(n *node, path string) {
		switch n.Kind {
		case sequence:
			for i, c := range n.Content {
				within(c, fmt.Sprintf("%s[%d]", path, i))
			}
		case mapping:
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i], n.Content[i+1]
				if value.letter() && listed(foreignBooleans, key.Value) {
					value.Tag = "!!bool"
				}
				if value.letter() && listed(foreignTexts, key.Value) {
					t.noteLetter(value, join(path, key.Value), false)
				}
				if listed(foreignMaps, key.Value) && value.Kind == mapping {
					t.foreignMap(value, join(path, key.Value))
				}
				within(value, join(path, key.Value))
			}
		}
	}
	within(t.node, "")
}

// foreignMap notes the letters of a map of texts.
func (t *Tree) foreignMap(n *node, path string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := path + "[" + key.Value + "]"
		if key.boolean && len(key.Value) == 1 {
			t.noteLetter(key, at, true)
		}
		if value.letter() && !listed(foreignTexts, key.Value) {
			t.noteLetter(value, at, false)
		}
	}
}

func listed(list, name string) bool { return strings.Contains(list, " "+name+" ") }
