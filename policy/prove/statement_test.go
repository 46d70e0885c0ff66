package prove

import (
	"testing"

	"pgregory.net/rapid"
)

// TestSolvedAsTried holds the solver against trying all values.
func TestSolvedAsTried(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f"}
	possible, impossible := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		all := every(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) statement { return drawStatement(t, names, 4) }), 1, 8).Draw(t, "statements")...)
		among := names[:rapid.IntRange(0, len(names)).Draw(t, "one of them")]
		asked := all
		if len(among) > 0 {
			asked = every(all, oneOf(among))
		}
		fits := func(values map[string]bool) bool {
			one := 0
			for _, name := range among {
				if values[name] {
					one++
				}
			}
			return holds(all, values) && (one == 1 || len(among) == 0)
		}
		found := solve(asked)
		tried := false
		values := map[string]bool{}
		for bits := range 1 << len(names) {
			for i, name := range names {
				values[name] = bits>>i&1 == 1
			}
			tried = tried || fits(values)
		}
		if (found != nil) != tried {
			t.Fatalf("solved: %v, by trying: %t", found, tried)
		}
		if !tried {
			impossible++
			return
		}
		if possible++; !fits(found) {
			t.Fatalf("it does not hold with %v", found)
		}
	})
	t.Logf("%d were possible, %d not", possible, impossible)
}

func drawStatement(t *rapid.T, names []string, depth int) statement {
	kind := rapid.IntRange(0, 9).Draw(t, "kind")
	if depth == 0 || kind < 2 {
		return variable(rapid.SampledFrom(names).Draw(t, "name"))
	}
	parts := func() []statement {
		var out []statement
		for range rapid.IntRange(0, 3).Draw(t, "parts") {
			out = append(out, drawStatement(t, names, depth-1))
		}
		return out
	}
	switch {
	case kind < 4:
		return not(drawStatement(t, names, depth-1))
	case kind < 7:
		return every(parts()...)
	case kind < 9:
		return either(parts()...)
	}
	return justOne(drawStatement(t, names, depth-1), drawStatement(t, names, depth-1))
}

func holds(s statement, values map[string]bool) bool {
	switch s.form {
	case falsehood:
		return false
	case named:
		return values[s.name]
	case negation:
		return !holds(s.parts[0], values)
	case conjunction:
		for _, part := range s.parts {
			if !holds(part, values) {
				return false
			}
		}
	case disjunction:
		for _, part := range s.parts {
			if holds(part, values) {
				return true
			}
		}
		return false
	}
	return true
}

// TestSolvedInDepth is what a solver's own conversion of nested formulas once found
// impossible: one of several, each of which needs one of several, in turn in parts.
func TestSolvedInDepth(t *testing.T) {
	a, b, c, d := variable("a"), variable("b"), variable("c"), variable("d")
	deep := either(d, every(a, either(every(b, c), every(not(b), c))))
	if model := solve(every(deep, not(c), not(a))); model == nil || !model["d"] {
		t.Errorf("solved with %v, want d alone", model)
	}
	if model := solve(every(deep, not(d), not(c))); model != nil {
		t.Errorf("solved with %v, and there is no way", model)
	}
}
