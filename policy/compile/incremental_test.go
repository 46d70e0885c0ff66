package compile_test

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestFollowsAnyEdits lets a Compiler follow random edits of objects of every
// kind, with lists in random orders and with time passing, and compares every
// output with that of a compilation from nothing: byte for byte.
func TestFollowsAnyEdits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{0, 1 << 30}).Draw(t, "most spelled out")
		narrow := rapid.SampledFrom(narrows).Draw(t, "narrow")
		pool := []compile.Input{policytest.Draw(t), policytest.Draw(t), policytest.Draw(t)}
		if rapid.Bool().Draw(t, "many names") {
			for i := range pool {
				policytest.DrawNames(t, &pool[i])
			}
		}
		compiler := compile.NewCompilerOfHands(most, narrow, rapid.IntRange(1, 3).Draw(t, "hands"))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		in := pool[0]
		var last compile.Output
		var before compile.Input
		var cutter *compile.Cutter
		var unread [][2]compile.Output // from nothing and following
		for step := range rapid.IntRange(2, 8).Draw(t, "steps") {
			if step > 0 {
				in = edited(t, in, pool[rapid.IntRange(0, len(pool)-1).Draw(t, "from")], r)
			}
			in.Generation++
			want, have := compile.NewCompilerNarrow(most, narrow).Compile(in), compiler.Compile(in)
			if rapid.Bool().Draw(t, "findings are read late") {
				unread = append(unread, [2]compile.Output{want, have})
			} else if a, b := asJSON(t, want.Findings()), asJSON(t, have.Findings()); a != b {
				t.Fatalf("step %d: following tells\n%s\nfrom nothing it is\n%s\n%s", step, b, a, policytest.Describe(in))
			}
			if a, b := wholeOutput(t, want), wholeOutput(t, have); a != b {
				t.Fatalf("step %d: following gives\n%s\nfrom nothing it is\n%s\n%s", step, b, a, policytest.Describe(in))
			}
			if stale := compiler.Stale(); stale != "" {
				t.Fatalf("step %d: %s", step, stale)
			}
			if step > 0 {
				untouchedHosts(t, last, have, before, in)
			}
			last, before = have, in
			cutter = cutter.Follow(have.Ruleset(), in)
			fresh := compile.NewCutter(have.Ruleset(), in)
			for _, host := range fresh.Hosts() {
				if a, b := asJSON(t, fresh.Cut(host)), asJSON(t, cutter.Cut(host)); a != b {
					t.Fatalf("step %d: a cutter that follows gives %s\n%s\na new one\n%s", step, host, b, a)
				}
			}
		}
		for _, out := range unread {
			if a, b := asJSON(t, out[0].Findings()), asJSON(t, out[1].Findings()); a != b {
				t.Fatalf("findings that are read late are\n%s\nfrom nothing they are\n%s", b, a)
			}
		}
	})
}

// untouchedHosts compares the parts of the hosts that nothing concerns which differs.
func untouchedHosts(t *rapid.T, last, out compile.Output, before, in compile.Input) {
	difference := last.Compare(out)
	placed := func(in compile.Input) any { return []any{in.Workloads, in.Scopes, in.Zones, in.Hosts, in.Profiles} }
	if difference.Everywhere || !reflect.DeepEqual(placed(before), placed(in)) {
		return
	}
	touched := out.HostsOf(difference.Groups)
	was, now := compile.NewCutter(last.Ruleset(), before), compile.NewCutter(out.Ruleset(), in)
	for _, host := range now.Hosts() {
		if touched[host] {
			continue
		}
		a, b := *was.Cut(host), *now.Cut(host)
		a.Generation, a.Digest, b.Generation, b.Digest = 0, "", 0, ""
		if x, y := asJSON(t, &a), asJSON(t, &b); x != y {
			t.Fatalf("%s is said to be untouched, and was\n%s\nand is\n%s", host, x, y)
		}
	}
}

// wholeOutput is all of an output but its findings.
func wholeOutput(t *rapid.T, out compile.Output) string {
	return asJSON(t, struct {
		Ruleset *bocage.Ruleset
		Faults  bocage.Faults
		Expires time.Time
	}{out.Ruleset(), out.Faults, out.Expires})
}

func asJSON(t *rapid.T, v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// edited takes some objects from another input for those of the same name, adds
// some and leaves some out, and lets time pass.
func edited(t *rapid.T, in, from compile.Input, r *rand.Rand) compile.Input {
	kinds := []func(){
		func() { in.Applications = mixed(t, in.Applications, from.Applications) },
		func() { in.Guardrails = mixed(t, in.Guardrails, from.Guardrails) },
		func() { in.Scopes = mixed(t, in.Scopes, from.Scopes) },
		func() { in.Profiles = mixed(t, in.Profiles, from.Profiles) },
		func() { in.Decoys = mixed(t, in.Decoys, from.Decoys) },
		func() { in.Quarantines = mixed(t, in.Quarantines, from.Quarantines) },
		func() { in.ThreatConditions = mixed(t, in.ThreatConditions, from.ThreatConditions) },
		func() { in.Workloads = mixed(t, in.Workloads, from.Workloads) },
		func() { in.Exceptions = mixed(t, in.Exceptions, from.Exceptions) },
		func() { in.Responses = mixed(t, in.Responses, from.Responses) },
		func() { in.AddressGroups = mixed(t, in.AddressGroups, from.AddressGroups) },
		func() { in.Zones = mixed(t, in.Zones, from.Zones) },
		func() { in.Namespaces = mixed(t, in.Namespaces, from.Namespaces) },
		func() { in.NetworkPolicies = mixed(t, in.NetworkPolicies, from.NetworkPolicies) },
		func() { in.ClusterNetworkPolicies = mixed(t, in.ClusterNetworkPolicies, from.ClusterNetworkPolicies) },
		func() { in.Hosts = mixed(t, in.Hosts, from.Hosts) },
		func() { in.Now = in.Now.Add(time.Duration(rapid.IntRange(-90, 240).Draw(t, "seconds")) * time.Second) },
		func() { in = policytest.Shuffle(in, r) },
		func() { in.Applications = redeclared(t, in.Applications) },
		func() { in.Workloads = unplaced(t, in.Workloads) },
		func() { in.Guardrails = askingOtherwise(t, in.Guardrails) },
	}
	for range rapid.IntRange(1, 3).Draw(t, "edits") {
		rapid.SampledFrom(kinds).Draw(t, "kind")()
	}
	return in
}

func mixed[T bocage.Resource](t *rapid.T, list, other []T) []T {
	out := slices.Clone(list)
	for _, o := range other {
		at := slices.IndexFunc(out, func(x T) bool { return x.Meta().NamespacedName() == o.Meta().NamespacedName() })
		switch there := at >= 0; rapid.IntRange(0, 2).Draw(t, "take") {
		case 0:
			if there {
				out[at] = o
			} else {
				out = append(out, o)
			}
		case 1:
			if there {
				out = slices.Delete(out, at, at+1)
			}
		}
	}
	return out
}

// redeclared says that an Application came from another place, and writes another
// anew without changing it.
func redeclared(t *rapid.T, list []*bocage.Application) []*bocage.Application {
	out := slices.Clone(list)
	for i, a := range out {
		again := *a
		if rapid.Bool().Draw(t, "moved") {
			again.Annotations = map[string]string{bocage.SourceAnnotation: rapid.SampledFrom([]string{"a.yaml:1", "b.yaml:2"}).Draw(t, "source")}
		}
		out[i] = &again
	}
	return out
}

// askingOtherwise has guardrails ask for other duties of the same flows, or asks the
// same from another place.
func askingOtherwise(t *rapid.T, list []*bocage.Guardrail) []*bocage.Guardrail {
	out := slices.Clone(list)
	for i, g := range out {
		again := *g
		switch {
		case g.Spec.Require == nil || rapid.Bool().Draw(t, "same"):
			again.Annotations = map[string]string{bocage.SourceAnnotation: rapid.SampledFrom([]string{"a.yaml:1", "b.yaml:2"}).Draw(t, "source")}
		default:
			duties := *g.Spec.Require
			duties.Rate = rapid.SampledFrom([]string{"", "10/s", "20/s"}).Draw(t, "rate")
			duties.Log = rapid.SampledFrom([]string{"", "full"}).Draw(t, "log")
			duties.Verify = rapid.SampledFrom([]string{"", "tls", "http"}).Draw(t, "verify")
			duties.Inspect = rapid.SampledFrom([]string{"", "web", "sql", "ids", "none"}).Draw(t, "inspect")
			duties.Witness = rapid.Bool().Draw(t, "witness")
			if duties.Empty() {
				duties.Witness = true
			}
			again.Spec.Require = &duties
		}
		out[i] = &again
	}
	return out
}

// unplaced takes the interface of some workloads away, and says of some that they
// came from another place.
func unplaced(t *rapid.T, list []*bocage.Workload) []*bocage.Workload {
	out := slices.Clone(list)
	for i, w := range out {
		again := *w
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0:
			again.Spec.Interface, again.Spec.MoreInterfaces = "", nil
		case 1:
			again.Annotations = map[string]string{bocage.SourceAnnotation: rapid.SampledFrom([]string{"a.yaml:1", "b.yaml:2"}).Draw(t, "source")}
		default:
			continue
		}
		out[i] = &again
	}
	return out
}
