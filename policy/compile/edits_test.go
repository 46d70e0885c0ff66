package compile_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"bocage.dev/bocage/policy/compile"
)

// TestFollowsEveryKindOfEdit changes one object of every kind after the other, in a
// site with hundreds of groups, and compares what follows with what comes from
// nothing, with one hand and with three. In between, lists come in other orders.
func TestFollowsEveryKindOfEdit(t *testing.T) {
	in := variedSite(2_000, 500)
	compilers := []*compile.Compiler{compile.NewCompilerOfHands(256, 1<<10, 1), compile.NewCompilerOfHands(256, 1<<10, 3)}
	for _, k := range compilers {
		k.Compile(in)
	}
	r := rand.New(rand.NewPCG(7, 1))
	const rounds = 6
	for n := range rounds {
		for _, kind := range editKinds {
			in = kind.edit(in, r, n)
			have := []compile.Output{compilers[0].Compile(in), compilers[1].Compile(in)}
			if r.IntN(4) > 0 {
				continue // several edits between two comparisons, most of the time
			}
			given := in
			given.Workloads, given.Applications = slices.Clone(in.Workloads), slices.Clone(in.Applications)
			r.Shuffle(len(given.Workloads), func(i, j int) {
				given.Workloads[i], given.Workloads[j] = given.Workloads[j], given.Workloads[i]
			})
			want := compile.Compile(given)
			for _, have := range have {
				compareJSON(t, kind.name, have.Ruleset(), want.Ruleset())
				compareJSON(t, kind.name, have.Findings(), want.Findings())
			}
		}
	}
}

// TestFollowsChangedPolicies changes drawn policies one after the other, as
// BenchmarkOnePolicy100k does, and compares what follows with what comes from nothing.
// Every third has an Application that others consume from offer cards or no longer.
func TestFollowsChangedPolicies(t *testing.T) {
	in := variedSite(2_000, 900)
	compiler := compile.NewCompilerOfHands(256, 1<<10, 2)
	compiler.Compile(in)
	r := rand.New(rand.NewPCG(5, 6))
	var back func(compile.Input) compile.Input
	kind, shifted := "", 0
	const edits = 300
	for n := range edits {
		switch {
		case back != nil:
			in, back = back(in), nil
		case n%3 == 0:
			in, kind = cards(in, r), "cards"
		default:
			in, back, kind = onePolicy(in, r, n)
		}
		have := compiler.Compile(in)
		if shifted += compiler.Shifted(); n%15 > 0 {
			continue // several edits between two comparisons, most of the time
		}
		want := compile.Compile(in)
		compareJSON(t, kind, have.Ruleset(), want.Ruleset())
		compareJSON(t, kind, have.Findings(), want.Findings())
		if stale := compiler.Stale(); stale != "" {
			t.Fatal(stale)
		}
		if left := compiler.Leftover(); left > 0 {
			t.Fatalf("after edit %d, %d things are known of statements and classes that are no more", n, left)
		}
	}
	if shifted == 0 {
		t.Error("no broad statement is ever kept for others")
	}
}

// cards has an Application say that what it provides at 5432 is about cards, or that it
// is not.
func cards(in compile.Input, r *rand.Rand) compile.Input {
	at := r.IntN(len(in.Applications))
	a := *in.Applications[at]
	a.Spec.Provides = slices.Clone(a.Spec.Provides)
	provide := &a.Spec.Provides[0]
	switch provide.Port = 5432; {
	case len(provide.Data) > 0:
		provide.Data = nil
	default:
		provide.Data = []string{"pci"}
	}
	in.Applications = replaced(in.Applications, at, &a)
	return in
}

func compareJSON(t *testing.T, after string, have, want any) {
	t.Helper()
	a, err := json.Marshal(have)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) == string(b) {
		return
	}
	at := 0
	for at < min(len(a), len(b)) && a[at] == b[at] {
		at++
	}
	part := func(text []byte) string { return string(text[max(at-200, 0):min(at+200, len(text))]) }
	t.Fatalf("after %s, following gives\n%s\nfrom nothing it is\n%s", after, part(a), part(b))
}
