package compile_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// Bounds on the pairs of narrow statements: with none, everything is said of classes.
var narrows = []int{0, 2, 6, 1 << 30}

// TestNamingsSayWhatPairsDo compiles random policies with all that is said towards names
// said pair by pair, and said of classes: the parts of all hosts are the same bytes, and
// the whole that says it once gives every flow what the one that spells it out gives.
func TestNamingsSayWhatPairsDo(t *testing.T) {
	namings, apart, saved := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		policytest.DrawNames(t, &in)
		spelled := compile.NewCompilerNarrow(1<<30, 1<<30).Compile(in).Ruleset()
		once := compile.NewCompilerNarrow(1<<30, rapid.SampledFrom(narrows[:3]).Draw(t, "narrow")).Compile(in).Ruleset()
		if len(spelled.Namings) > 0 {
			for _, n := range spelled.Namings { // of what refuses or owes, which stays broad
				saved -= len(n.From) * len(n.To)
			}
		}
		for _, n := range once.Namings {
			namings++
			saved += len(n.From)*len(n.To) - 1
		}
		apart += len(once.Apart)
		a, b := compile.NewCutter(spelled, in), compile.NewCutter(once, in)
		for _, host := range a.Hosts() {
			x, y := a.Cut(host), b.Cut(host)
			if len(y.Namings)+len(y.Apart) > 0 {
				t.Fatalf("%s is given namings", host)
			}
			if x, y := asJSON(t, x), asJSON(t, y); x != y {
				t.Fatalf("%s is given, pair by pair,\n%s\nand of what is said once\n%s\n%s", host, x, y, policytest.Describe(in))
			}
		}
		if x, y := asJSON(t, spelled.Decisions), asJSON(t, once.Decisions); x != y {
			t.Fatalf("the decisions are, pair by pair,\n%s\nand of what is said once\n%s\n%s", x, y, policytest.Describe(in))
		}
		rowsOnceEach(t, once)
		heard := rapid.SampledFrom([][]bocage.DomainName{{"api.example.com"}, {"a.b.example.com", "example.com"}, {"db.example.net", "api.example.com"}}).Draw(t, "heard")
		keep, n := rapid.IntRange(0, 19).Draw(t, "sample"), 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%20 != keep {
				return
			}
			f.At = policytest.Moments()[n%len(policytest.Moments())]
			verdict, reason := spelled.DecideNamed(f, heard...)
			if v, r := once.DecideNamed(f, heard...); v != verdict || r != reason {
				t.Fatalf("%s as %v is %s by %s, and of what is said once %s by %s", f, heard, verdict, reason.Decision, v, r.Decision)
			}
		})
	})
	if namings == 0 || apart == 0 || saved <= 0 {
		t.Errorf("%d namings, %d pairs apart, %d rows saved: this shows nothing", namings, apart, saved)
	}
	t.Logf("%d namings, %d pairs apart, %d rows saved", namings, apart, saved)
}

// rowsOnceEach checks what a Ruleset promises of its Namings.
func rowsOnceEach(t *rapid.T, rs *bocage.Ruleset) {
	said := map[bocage.GroupPair]int{}
	for i, n := range rs.Namings {
		if !slices.IsSorted(n.From) || !slices.IsSorted(n.To) || i > 0 && bocage.CompareNamings(rs.Namings[i-1], n) >= 0 {
			t.Fatalf("namings are out of order: %+v", rs.Namings)
		}
		for _, from := range n.From {
			for _, to := range n.To {
				said[bocage.GroupPair{From: from, To: to}]++
			}
		}
	}
	for _, at := range rs.Apart {
		if said[at] != 1 {
			t.Fatalf("%v is apart from nothing", at)
		}
		said[at] = 0
	}
	for _, r := range rs.Rules {
		if said[bocage.GroupPair{From: r.From, To: r.To}] > 0 {
			t.Fatalf("%v is said in a rule and in a naming", r)
		}
	}
	for at, n := range said {
		if n > 1 {
			t.Fatalf("%v is said in %d namings", at, n)
		}
	}
}

// TestManyNamesOfMany lets everybody reach names in a site of so many kinds of workload
// that it is said once, with one kind that is told apart, and follows edits of the names.
func TestManyNamesOfMany(t *testing.T) {
	const kinds = 60
	in := policytest.Site(kinds * 10)
	priority := int32(5)
	accept := func(names int) []*bocage.ClusterNetworkPolicy {
		p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin,
			Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}}}}
		var to []bocage.ClusterNetworkPolicyEgressPeer
		for i := range names {
			if i%25 == 0 {
				to = append(to, bocage.ClusterNetworkPolicyEgressPeer{})
			}
			peer := &to[len(to)-1]
			peer.DomainNames = append(peer.DomainNames, fmt.Sprintf("n%d.example.com", i))
		}
		p.Spec.Egress = []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: to}}
		return []*bocage.ClusterNetworkPolicy{p}
	}
	compiler := compile.NewCompiler()
	for _, names := range []int{50, 51, 49, 0, 50} {
		if in.ClusterNetworkPolicies = nil; names > 0 {
			in.ClusterNetworkPolicies = accept(names)
		}
		out, fresh := compiler.Compile(in), compile.Compile(in)
		compareJSON(t, fmt.Sprint(names), out.Ruleset(), fresh.Ruleset())
		rs := out.Ruleset()
		rows := 0
		for _, r := range rs.Rules {
			if slices.ContainsFunc(rs.Names, func(n bocage.Name) bool { return n.Group == r.To }) {
				rows++
			}
		}
		cells := 0
		for _, n := range rs.Namings {
			cells += len(n.To) * len(n.Cells)
		}
		if rows > 0 || cells != names {
			t.Errorf("%d names for everybody are %d rules and %d in %d namings", names, rows, cells, len(rs.Namings))
		}
		if names == 0 {
			continue
		}
		cut := compile.NewCutter(rs, in).Cut(compile.NewCutter(rs, in).Hosts()[0])
		if len(cut.Names) != names {
			t.Errorf("a host is given %d of %d names", len(cut.Names), names)
		}
	}
}
