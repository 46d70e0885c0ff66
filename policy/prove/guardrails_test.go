package prove_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func named(name string) bocage.ObjectMeta { return bocage.ObjectMeta{Name: name} }

func workload(namespace, name string, number int, labels map[string]string) *bocage.Workload {
	return &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: bocage.WorkloadSpec{Host: "h1", Interface: fmt.Sprintf("v%d", number),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(number >> 8), byte(number)})}},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(number)}}
}

func picking(key, value string) bocage.Side {
	return bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{key: value}}}
}

// chain is a row of n workloads in which everybody may open 80 to the next.
func chain(n int) compile.Input {
	in := compile.Input{Generation: 1, Now: now}
	for i := range n {
		in.Workloads = append(in.Workloads, workload("row", fmt.Sprintf("w%d", i), i+1, map[string]string{"place": fmt.Sprint(i), "env": []string{"prod", "dev"}[i%2]}))
	}
	grants := &bocage.Guardrail{ObjectMeta: named("row")}
	for i := range n - 1 {
		grants.Spec.Grant = append(grants.Spec.Grant, bocage.CellMatch{From: picking("place", fmt.Sprint(i)), To: picking("place", fmt.Sprint(i+1)),
			Ports: []bocage.PortMatch{{Port: 80}}})
	}
	in.Guardrails = append(in.Guardrails, grants)
	return in
}

// failures proves and returns what failed, by the fields that asked for it.
func failures(in compile.Input, rs *bocage.Ruleset) map[string]string {
	out := map[string]string{}
	for _, p := range prove.Failed(prove.Prove(in, rs)) {
		out[strings.TrimSpace(p.By.Name+" "+p.By.Field)] = p.Counterexample
	}
	return out
}

func TestBlastRadius(t *testing.T) {
	for _, test := range []struct {
		name      string
		radius    bocage.BlastRadius
		weight    string // of the last in the row
		reached   int    // weight that the first reaches
		fulfilled bool
	}{
		{"to the end", bocage.BlastRadius{From: picking("place", "0"), MaxWeight: 9}, "", 9, true},
		{"one too many", bocage.BlastRadius{From: picking("place", "0"), MaxWeight: 8}, "", 9, false},
		{"within hops", bocage.BlastRadius{From: picking("place", "0"), MaxHops: 3, MaxWeight: 3}, "", 3, true},
		{"hops too far", bocage.BlastRadius{From: picking("place", "0"), MaxHops: 3, MaxWeight: 2}, "", 3, false},
		{"from further on", bocage.BlastRadius{From: picking("place", "7"), MaxWeight: 2}, "", 2, true},
		{"from anywhere", bocage.BlastRadius{MaxWeight: 8}, "", 9, false},
		{"a heavy end", bocage.BlastRadius{From: picking("place", "0"), MaxWeight: 20}, "50", 58, false},
		{"a weightless end", bocage.BlastRadius{From: picking("place", "0"), MaxWeight: 8}, "0", 8, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := chain(10)
			if test.weight != "" {
				in.Workloads[9].Labels[bocage.LabelWeight] = test.weight
			}
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("radius"), Spec: bocage.GuardrailSpec{BlastRadius: &test.radius}})
			counter, failed := failures(in, compile.Compile(in).Ruleset())["radius spec.blastRadius"]
			if failed == test.fulfilled {
				t.Fatalf("fails: %v (%s)", failed, counter)
			}
			if failed && !strings.Contains(counter, fmt.Sprintf("a weight of %d", test.reached)) {
				t.Errorf("%q names another weight than %d", counter, test.reached)
			}
		})
	}
}

// TestBlastRadiusThroughWildcards lets everybody reach one hub, and the hub all.
func TestBlastRadiusThroughWildcards(t *testing.T) {
	in := compile.Input{Generation: 1, Now: now}
	for i := range 200 {
		in.Workloads = append(in.Workloads, workload("row", fmt.Sprintf("w%d", i), i+1, map[string]string{"app": fmt.Sprint(i)}))
	}
	every := bocage.Side{Workload: &bocage.Selector{}}
	in.Guardrails = []*bocage.Guardrail{
		{ObjectMeta: named("hub"), Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{{To: picking("app", "0")}, {From: picking("app", "0")}}}},
		{ObjectMeta: named("radius"), Spec: bocage.GuardrailSpec{BlastRadius: &bocage.BlastRadius{From: every, MaxHops: 1, MaxWeight: 198}}},
		{ObjectMeta: named("way"), Spec: bocage.GuardrailSpec{BlastRadius: &bocage.BlastRadius{From: picking("app", "7"), MaxHops: 1, MaxWeight: 1}}},
		{ObjectMeta: named("two"), Spec: bocage.GuardrailSpec{BlastRadius: &bocage.BlastRadius{From: picking("app", "7"), MaxHops: 2, MaxWeight: 198}}},
	}
	failed := failures(in, compile.Compile(in).Ruleset())
	if _, ok := failed["radius spec.blastRadius"]; !ok {
		t.Error("the hub reaches 199 in one hop, and that is not noticed")
	}
	if counter, bad := failed["way spec.blastRadius"]; bad {
		t.Error(counter)
	}
	if _, ok := failed["two spec.blastRadius"]; !ok {
		t.Error("through the hub everybody reaches 199, and that is not noticed")
	}
}

// TestSpoiledGuardrails turns one refusal of a guardrail into an allow, or takes
// one duty off: the guardrail's own proof has to notice.
func TestSpoiledGuardrails(t *testing.T) {
	site := func() compile.Input {
		in := chain(6)
		in.Guardrails = append(in.Guardrails,
			&bocage.Guardrail{ObjectMeta: named("apart"), Spec: bocage.GuardrailSpec{
				Match: bocage.CellMatch{To: picking("place", "3")}, Separate: &bocage.Separate{By: "env"},
				Exceptions: bocage.ExceptionTerms{Allowed: true, Max: "2h"}}},
			&bocage.Guardrail{ObjectMeta: named("duties"), Spec: bocage.GuardrailSpec{Match: bocage.CellMatch{To: picking("place", "5")},
				Require: &bocage.Duties{Rate: "20/s", Verify: "tls", Whole: true, Witness: true, Provenance: true, Log: "full"}}})
		return in
	}
	exception := func(until time.Duration) *bocage.Exception {
		return &bocage.Exception{ObjectMeta: named("tonight"), Spec: bocage.ExceptionSpec{Guardrail: "apart",
			Match: bocage.CellMatch{From: picking("place", "2")}, From: now.Add(-time.Hour), Until: now.Add(until)}}
	}
	spoil := func(rs *bocage.Ruleset, change func(*bocage.Decision) bool) {
		i := slices.IndexFunc(rs.Decisions, func(d bocage.Decision) bool { return change(&d) })
		if i < 0 {
			t.Fatal("there is no such decision")
		}
		change(&rs.Decisions[i])
	}
	allow := func(d *bocage.Decision) bool {
		d.Verdict = bocage.VerdictAllow
		return d.Code == bocage.ReasonGuardrail
	}
	owing := func(change func(*bocage.Duties)) func(*bocage.Ruleset) {
		return func(rs *bocage.Ruleset) {
			spoil(rs, func(d *bocage.Decision) bool {
				if d.Duties == nil {
					return false
				}
				changed := *d.Duties
				change(&changed)
				d.Duties = &changed
				return true
			})
		}
	}
	for _, test := range []struct {
		name, field string
		exceptions  []*bocage.Exception
		spoil       func(*bocage.Ruleset)
	}{
		{"separate", "apart spec.separate", nil, func(rs *bocage.Ruleset) { spoil(rs, allow) }},
		{"separate after an exception", "apart spec.separate", []*bocage.Exception{exception(time.Hour)}, func(rs *bocage.Ruleset) { spoil(rs, allow) }},
		{"an exception that does not end", "apart spec.separate", []*bocage.Exception{exception(time.Hour)}, func(rs *bocage.Ruleset) {
			spoil(rs, func(d *bocage.Decision) bool {
				if d.Until.IsZero() || !d.Verdict.Allowed() {
					return false
				}
				d.Until, d.Then = time.Time{}, 0
				return true
			})
		}},
		{"rate", "duties spec.require.rate", nil, owing(func(d *bocage.Duties) { d.Rate = "21/s" })},
		{"no rate", "duties spec.require.rate", nil, owing(func(d *bocage.Duties) { d.Rate = "" })},
		{"verify", "duties spec.require.verify", nil, owing(func(d *bocage.Duties) { d.Verify = "http" })},
		{"whole", "duties spec.require.whole", nil, owing(func(d *bocage.Duties) { d.Whole = false })},
		{"witness", "duties spec.require.witness", nil, owing(func(d *bocage.Duties) { d.Witness = false })},
		{"provenance", "duties spec.require.provenance", nil, owing(func(d *bocage.Duties) { d.Provenance = false })},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := site()
			in.Exceptions = test.exceptions
			if failed := failures(in, compile.Compile(in).Ruleset()); len(failed) > 0 {
				t.Fatalf("fails unspoiled: %v", failed)
			}
			rs := compile.Compile(in).Ruleset()
			test.spoil(rs)
			if failed := failures(in, rs); failed[test.field] == "" {
				t.Fatalf("no proof of %s fails: %v", test.field, failed)
			}
		})
	}
}

// TestProtectedCellsAreNotCut spoils the one thing that protects a lifeline.
func TestProtectedCellsAreNotCut(t *testing.T) {
	in := chain(3)
	in.Scopes = []*bocage.Scope{{ObjectMeta: named("all"), Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
	in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: named("t"), Spec: bocage.ThreatConditionSpec{
		Workload: "row/w0", Level: bocage.LevelQuarantine, Reason: "test", Expires: now.Add(time.Hour)}}}
	unprotected := compile.Compile(in).Ruleset()
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("life"), Spec: bocage.GuardrailSpec{
		Protect: []bocage.CellMatch{{To: picking("place", "1"), Ports: []bocage.PortMatch{{Port: 80}}}}}})
	if failed := failures(in, compile.Compile(in).Ruleset()); len(failed) > 0 {
		t.Fatalf("fails unspoiled: %v", failed)
	}
	if failed := failures(in, unprotected); failed["life spec.protect[0]"] == "" {
		t.Fatalf("a quarantine that cuts a protected cell is not noticed: %v", failed)
	}
}

// TestProtectedCellsAreNotBurdened has responses and conditions ask for every duty that
// may cost packets: what is protected must not owe it, as long as nobody else asks.
func TestProtectedCellsAreNotBurdened(t *testing.T) {
	const reports = "alert tcp any any -> any any (msg:\"x\"; sid:1;)\n"
	for _, test := range []struct {
		name    string
		require bocage.Duties
		inspect bocage.InspectionProfileSpec
		deepens bool // the condition itself inspects
		burden  bool
	}{
		{"what is spoken", bocage.Duties{Verify: "mysql"}, bocage.InspectionProfileSpec{}, false, true},
		{"a rate", bocage.Duties{Rate: "1/s"}, bocage.InspectionProfileSpec{}, false, true},
		{"whole packets", bocage.Duties{Whole: true}, bocage.InspectionProfileSpec{}, false, true},
		{"assurance that holds", bocage.Duties{Assurance: "L0"}, bocage.InspectionProfileSpec{}, false, true},
		{"assurance that does not", bocage.Duties{Assurance: "L5"}, bocage.InspectionProfileSpec{}, false, true},
		{"a profile that there is not", bocage.Duties{Inspect: "none"}, bocage.InspectionProfileSpec{}, false, true},
		{"a profile that fails closed", bocage.Duties{Inspect: "p"}, bocage.InspectionProfileSpec{Signatures: reports}, false, true},
		{"a profile that blocks", bocage.Duties{Inspect: "p"}, bocage.InspectionProfileSpec{Signatures: reports + "  reject tcp any any -> any any (sid:2;)", FailMode: "open"}, false, true},
		{"a profile that reports", bocage.Duties{Inspect: "p"}, bocage.InspectionProfileSpec{Signatures: "# drop nothing\n\n" + reports, FailMode: "open"}, false, false},
		{"a condition's profile that fails closed", bocage.Duties{Log: "full"}, bocage.InspectionProfileSpec{Signatures: reports}, true, true},
		{"a condition's profile that reports", bocage.Duties{Log: "full"}, bocage.InspectionProfileSpec{Signatures: reports, FailMode: "open"}, true, false},
		{"what is only told of", bocage.Duties{Log: "full", Witness: true, Provenance: true}, bocage.InspectionProfileSpec{}, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := chain(3)
			in.Scopes = []*bocage.Scope{{ObjectMeta: named("all"), Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
			if test.inspect.Signatures != "" {
				in.Profiles = []*bocage.InspectionProfile{{ObjectMeta: named("p"), Spec: test.inspect}}
			}
			in.Responses = []*bocage.Response{{ObjectMeta: named("r"), Spec: bocage.ResponseSpec{
				When: bocage.ResponseWhen{Level: bocage.LevelWatch}, Then: bocage.ResponseThen{Require: &test.require}}}}
			condition := &bocage.ThreatCondition{ObjectMeta: named("t"), Spec: bocage.ThreatConditionSpec{
				Workload: "row/w0", Level: bocage.LevelDeepen, Reason: "test", Expires: now.Add(time.Hour)}}
			if test.deepens {
				condition.Spec.Profile = "p"
			}
			in.ThreatConditions = []*bocage.ThreatCondition{condition}
			unprotected := compile.Compile(in).Ruleset()
			cells := []bocage.CellMatch{{To: picking("place", "1"), Ports: []bocage.PortMatch{{Port: 80}}}}
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("life"), Spec: bocage.GuardrailSpec{Protect: cells}})
			protected := compile.Compile(in).Ruleset()
			if failed := failures(in, protected); len(failed) > 0 {
				t.Errorf("fails unspoiled: %v", failed)
			}
			flow := bocage.Flow{Source: in.Workloads[0].Spec.Addresses[0], Destination: in.Workloads[1].Spec.Addresses[0], Protocol: bocage.ProtocolTCP, DestinationPort: 80, At: now}
			calm := in
			calm.ThreatConditions = nil
			_, before := compile.Compile(calm).Ruleset().Decide(flow)
			_, after := protected.Decide(flow)
			if before.Would.Allowed() != after.Would.Allowed() || !before.Would.Allowed() {
				t.Errorf("protected, it gets %s by the threat, and %s before", after.Would, before.Would)
			}
			if d, _ := protected.Decision(after.Decision); test.burden && (d.Profile != 0 || d.Duties != nil && *d.Duties != (bocage.Duties{Log: "full"})) {
				t.Errorf("protected, it owes %v and is inspected by %d", d.Duties.List(), d.Profile)
			}
			if failed := failures(in, unprotected); (failed["life spec.protect[0]"] != "") != test.burden {
				t.Errorf("of an unprotected cell: %v", failed)
			}
			// Where a person asks for it as well, it is owed, and no fault of automation.
			if test.burden && test.require.Assurance != "L5" && test.require.Inspect != "none" && !test.deepens {
				in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("own"), Spec: bocage.GuardrailSpec{Require: &test.require}})
				both := compile.Compile(in).Ruleset()
				if failed := failures(in, both); len(failed) > 0 {
					t.Errorf("fails where a guardrail asks too: %v", failed)
				}
				_, reason := both.Decide(flow)
				if d, _ := both.Decision(reason.Decision); slices.ContainsFunc(d.By, func(by bocage.Ref) bool { return by.Kind == "Response" }) {
					t.Errorf("owed to a response, too: %v", d.By)
				}
			}
		})
	}
}

// TestProtectedIsWhatIsOffered quarantines a workload that offers data, where such data
// is protected at ports: only where both meet is there anything to protect.
func TestProtectedIsWhatIsOffered(t *testing.T) {
	for _, test := range []struct {
		name      string
		data      string
		ports     bocage.PortMatch
		protected bool
	}{
		{"at the port", "pci", bocage.PortMatch{Port: 5432}, true},
		{"around the port", "pci", bocage.PortMatch{Port: 1, EndPort: 65535}, true},
		{"at another port", "pci", bocage.PortMatch{Port: 80}, false},
		{"over another protocol", "pci", bocage.PortMatch{Protocol: "47"}, false},
		{"of another class", "pii", bocage.PortMatch{Port: 5432}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := chain(3)
			in.Scopes = []*bocage.Scope{{ObjectMeta: named("all"), Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
			in.Applications = []*bocage.Application{{ObjectMeta: bocage.ObjectMeta{Namespace: "row", Name: "db"}, Spec: bocage.ApplicationSpec{
				Workload: *picking("place", "1").Workload, Provides: []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}}}}}}
			in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: named("t"), Spec: bocage.ThreatConditionSpec{
				Workload: "row/w1", Level: bocage.LevelQuarantine, Reason: "test", Expires: now.Add(time.Hour)}}}
			whole := compile.Compile(in).Ruleset()
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("life"), Spec: bocage.GuardrailSpec{
				Protect: []bocage.CellMatch{{To: bocage.Side{Data: []string{test.data}}, Ports: []bocage.PortMatch{test.ports}}}}})
			if failed := failures(in, compile.Compile(in).Ruleset()); len(failed) > 0 {
				t.Errorf("fails: %v", failed)
			}
			if failed := failures(in, whole); (failed["life spec.protect[0]"] != "") != test.protected {
				t.Errorf("cut off as a whole: %v", failed)
			}
		})
	}
}

func BenchmarkBlastRadius(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := policytest.Site(n)
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("radius"),
				Spec: bocage.GuardrailSpec{BlastRadius: &bocage.BlastRadius{MaxWeight: n}}})
			rs := compile.Compile(in).Ruleset()
			prover := new(prove.Prover)
			prover.Prove(in, rs) // the pairs of declarations are known then
			for b.Loop() {
				if failed := prove.Failed(prover.Prove(in, rs)); len(failed) > 0 {
					b.Fatal(failed)
				}
			}
		})
	}
}

// TestBlastRadiusAgainstWalks holds the closure over groups against a walk from
// workload to workload along every flow that the ruleset allows.
func TestBlastRadiusAgainstWalks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		in.ThreatConditions, in.Quarantines = nil, nil // refused identities are no part of the closure
		// Groups of members that speak different IP versions are taken to reach
		// whoever one of them reaches, which a walk does not.
		in.Workloads = slices.DeleteFunc(in.Workloads, func(w *bocage.Workload) bool {
			return slices.ContainsFunc(w.Spec.Addresses, netip.Addr.Is6)
		})
		weights := map[string]int{}
		for i, w := range in.Workloads {
			weight := rapid.IntRange(0, 3).Draw(t, "weight")
			copied := *w
			copied.Labels = maps.Clone(w.Labels)
			if copied.Labels == nil {
				copied.Labels = map[string]string{}
			}
			copied.Labels[bocage.LabelWeight] = fmt.Sprint(weight)
			in.Workloads[i], weights[w.NamespacedName()] = &copied, weight
		}
		hops := rapid.IntRange(0, 4).Draw(t, "hops")
		rs := compile.Compile(in).Ruleset()
		most := heaviest(rs, hops, weights)
		for _, radius := range []int{most, most - 1} {
			if radius < 0 {
				continue
			}
			bounded := in
			bounded.Guardrails = append(slices.Clone(in.Guardrails), &bocage.Guardrail{ObjectMeta: named("zz-radius"), Spec: bocage.GuardrailSpec{
				BlastRadius: &bocage.BlastRadius{MaxHops: hops, MaxWeight: radius}}})
			counter := failures(bounded, compile.Compile(bounded).Ruleset())["zz-radius spec.blastRadius"]
			if holds := counter == ""; holds != (radius == most) {
				t.Fatalf("the walks reach %d in %d hops, a bound of %d holds: %v (%s)\n%s", most, hops, radius, holds, counter, policytest.Describe(in))
			}
		}
	})
}

// allowsAny reports whether some flow between two addresses is allowed.
func allowsAny(rs *bocage.Ruleset, source, destination netip.Addr) bool {
	f := bocage.Flow{Source: source, Destination: destination}
	for _, f.Protocol = range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP, bocage.ProtocolICMP, 47, 50} {
		for _, f.DestinationPort = range policytest.Ports() {
			if _, reason := rs.Decide(f); reason.Would.Allowed() {
				return true
			}
		}
	}
	return false
}

// heaviest walks from every workload, and from outside, and returns the most that
// the workloads weigh that are reached.
func heaviest(rs *bocage.Ruleset, hops int, weights map[string]int) int {
	next := map[string]map[string]bool{}
	who := func(a netip.Addr) string {
		if peer := rs.Lookup(a); peer.Workload != "" {
			return peer.Workload
		}
		return "outside " + rs.Lookup(a).Prefix.String()
	}
	addresses := policytest.Addresses()
	for _, peer := range rs.Peers {
		addresses = append(addresses, peer.Prefix.Addr())
	}
	for _, source := range addresses {
		for _, destination := range addresses {
			from, to := who(source), who(destination)
			if from == to || source.Is4() != destination.Is4() || strings.HasPrefix(to, "outside") || next[from][to] {
				continue
			}
			if next[from] == nil {
				next[from] = map[string]bool{}
			}
			next[from][to] = allowsAny(rs, source, destination)
		}
	}
	most := 0
	for from := range next {
		reached, edge := map[string]bool{}, []string{from}
		for hop := 0; len(edge) > 0 && (hops == 0 || hop < hops); hop++ {
			var beyond []string
			for _, at := range edge {
				for to, open := range next[at] {
					if open && to != from && !reached[to] {
						reached[to] = true
						beyond = append(beyond, to)
					}
				}
			}
			edge = beyond
		}
		weight := 0
		for to := range reached {
			weight += weights[to]
		}
		most = max(most, weight)
	}
	return most
}

// TestGuardrailsHoldAgainstNames spoils, for a name that is consumed, what refuses its
// addresses and what it owes: the proofs say so.
func TestGuardrailsHoldAgainstNames(t *testing.T) {
	prefix := func(text string) bocage.Side {
		return bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(text)}}
	}
	owes := func(d bocage.Decision) bool { return d.Verdict.Allowed() && d.Duties != nil && d.Duties.Witness }
	refuses := func(d bocage.Decision) bool { return d.Code == bocage.ReasonGuardrail }
	yields := func(d *bocage.Decision) { d.Code = bocage.ReasonDefaultDeny }
	forget := func(d *bocage.Decision) { d.Duties = nil }
	for _, test := range []struct {
		name      string
		guardrail bocage.GuardrailSpec
		spoils    func(d bocage.Decision) bool
		spoil     func(d *bocage.Decision)
		failed    string
	}{
		{"some addresses open", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: prefix("198.51.100.0/24")}}}, refuses, yields, "closed spec.never[0]"},
		// The first address of which no name can be that of.
		{"all addresses open", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: prefix("0.0.0.0/0")}}}, refuses, yields, "closed spec.never[0]"},
		{"everybody opens", bocage.GuardrailSpec{Never: []bocage.CellMatch{{}}}, refuses, yields, "closed spec.never[0]"},
		{"a duty is forgotten", bocage.GuardrailSpec{Match: bocage.CellMatch{To: prefix("198.51.100.0/24")}, Require: &bocage.Duties{Witness: true}}, owes, forget, "closed spec.require.witness"},
		{"a duty to anybody is forgotten", bocage.GuardrailSpec{Require: &bocage.Duties{Witness: true}}, owes, forget, "closed spec.require.witness"},
	} {
		t.Run(test.name, func(t *testing.T) {
			web := workload("row", "w", 1, map[string]string{"app": "w"})
			in := compile.Input{Generation: 1, Now: now, Workloads: []*bocage.Workload{web}}
			in.Applications = []*bocage.Application{{ObjectMeta: bocage.ObjectMeta{Namespace: "row", Name: "w"}, Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: map[string]string{"app": "w"}},
				Consumes: []bocage.Consume{{External: bocage.External{Name: "*.example.com"}, Port: 443}}}}}
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: named("closed"), Spec: test.guardrail}}
			rs := compile.Compile(in).Ruleset()
			if failed := failures(in, rs); len(failed) > 0 {
				t.Fatalf("as compiled: %v", failed)
			}
			spoiled := rs.Copy()
			spoiled.Decisions = slices.Clone(rs.Decisions)
			spoilt := 0
			for i, d := range spoiled.Decisions {
				if test.spoils(d) {
					test.spoil(&spoiled.Decisions[i])
					spoilt++
				}
			}
			if failed := failures(in, spoiled); spoilt == 0 || !strings.Contains(failed[test.failed], "as any.example.com") {
				t.Fatalf("%d decisions are spoiled, and a way by name is not found: %v", spoilt, failed)
			}
		})
	}
}
