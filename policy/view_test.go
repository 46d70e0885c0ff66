package policy

import (
	"slices"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// TestEveryKindIsInEveryList gives policy one object of each kind: what one of the
// lists of kinds lacked would be enforced until somebody goes back to it, or never.
func TestEveryKindIsInEveryList(t *testing.T) {
	unread := []string{"Incident", "Event", "RoleBinding"}
	beside := []string{"Generation", "PolicyTest", "Rollout"} // read, and no part of what is compiled
	m := newMirror()
	for _, kind := range bocage.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			if _, read := m.kinds[kind.Plural]; read == slices.Contains(unread, kind.Name) {
				t.Fatalf("the mirror holds it: %v", read)
			}
			if slices.Contains(unread, kind.Name) {
				return
			}
			compiled := !slices.Contains(beside, kind.Name)
			if (m.bucketsOf(kind) != nil) != compiled {
				t.Errorf("it is kept with a generation: %v", !compiled)
			}
			o := kind.New()
			var in compile.Input
			add(&in, o)
			var found []string
			each(in, func(name string, _ bocage.Resource) { found = append(found, name) })
			if want := []string{kind.Name}; compiled && !slices.Equal(found, want) || !compiled && len(found) > 0 {
				t.Fatalf("of an input with it, each finds %v", found)
			}
			if !compiled {
				return
			}
			if specOf(o) == nil {
				t.Error("nothing in it counts")
			}
			sortInput(&in)
			kept := 0
			each(withPolicy(compile.Input{}, in), func(string, bocage.Resource) { kept++ })
			if (kept == 1) != isPolicy(kind.Name) {
				t.Errorf("a rollback brings %d of it back", kept)
			}
			if count(in) != 1 {
				t.Errorf("it is counted as %d objects", count(in))
			}
			b := build{before: &compile.Input{}}
			if names := b.changes(&outcome{input: in}); len(names) != 1 {
				t.Errorf("what changed is told as %q", names)
			}
		})
	}
}
