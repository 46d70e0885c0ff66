package prove_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

// sharing says once what a ruleset says of many towards names, but for some pairs.
func sharing(t *rapid.T, rs *bocage.Ruleset) *bocage.Ruleset {
	most := rapid.IntRange(0, 3).Draw(t, "apart")
	return policytest.Share(rs, func(bocage.GroupPair) bool { return rapid.IntRange(0, 3).Draw(t, "pair") < most })
}

func failing(proofs []bocage.Proof) string {
	var out []string
	for _, p := range prove.Failed(proofs) {
		out = append(out, p.Statement)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestNamingsProveWhatRulesDo reads rulesets that spell out what they say towards names,
// and such that say it once: every proof of the one holds of the other, a change is shown
// to tighten, or not, whichever of them stands before and after it, and what is told of it
// is the same.
func TestNamingsProveWhatRulesDo(t *testing.T) {
	namings, told, tight := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in, from := policytest.Draw(t), policytest.Draw(t)
		policytest.DrawNames(t, &in)
		policytest.DrawNames(t, &from)
		rs := compile.Compile(in).Ruleset()
		shared := sharing(t, rs)
		namings += len(shared.Namings)
		if a, b := failing(prove.Prove(in, rs)), failing(prove.Prove(in, shared)); a != b {
			t.Fatalf("of rules these fail:\n%s\nand of namings\n%s\n%s", a, b, policytest.Describe(in))
		}
		now := in
		now.Applications = someOf(t, in.Applications, from.Applications)
		now.Guardrails = someOf(t, in.Guardrails, from.Guardrails)
		now.Exceptions = someOf(t, in.Exceptions, from.Exceptions)
		now.ThreatConditions = someOf(t, in.ThreatConditions, from.ThreatConditions)
		now.ClusterNetworkPolicies = someOf(t, in.ClusterNetworkPolicies, from.ClusterNetworkPolicies)
		after := compile.Compile(now).Ruleset()
		afterShared := sharing(t, after)
		tightens, changes := failing(prove.Tightening(rs, now, after)), fmt.Sprint(prove.Compare(rs, after))
		if tightens == "" {
			tight++
		}
		told += strings.Count(changes, "example.")
		for i, pair := range [][2]*bocage.Ruleset{{rs, afterShared}, {shared, after}, {shared, afterShared}} {
			if b := failing(prove.Tightening(pair[0], now, pair[1])); b != tightens {
				t.Fatalf("%d: of rules these fail:\n%s\nand of namings\n%s\n%s\nand then\n%s", i, tightens, b, policytest.Describe(in), policytest.Describe(now))
			}
			if b := fmt.Sprint(prove.Compare(pair[0], pair[1])); b != changes {
				t.Fatalf("%d: of rules it is told\n%s\nand of namings\n%s", i, changes, b)
			}
		}
	})
	if namings == 0 || told == 0 || tight == 0 {
		t.Errorf("%d namings, %d changes towards names, %d that tighten: this shows nothing", namings, told, tight)
	}
}

// TestSpoiledNamingsFail spoils one thing in what is said of many towards names.
func TestSpoiledNamingsFail(t *testing.T) {
	in := policytest.Site(100)
	priority, port := int32(5), int32(443)
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{
		Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
		Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"a.example.com", "b.example.com"}}},
			Protocols: []bocage.ClusterNetworkPolicyProtocol{{TCP: &bocage.ClusterNetworkPolicyTransport{DestinationPort: &bocage.ClusterNetworkPolicyPort{Number: &port}}}}}}}}}
	rs := policytest.Share(compile.Compile(in).Ruleset(), func(bocage.GroupPair) bool { return false })
	if len(rs.Namings) == 0 {
		t.Fatal("nothing is said once")
	}
	if failed := prove.Failed(prove.Prove(in, rs)); len(failed) > 0 {
		t.Fatalf("%+v", failed)
	}
	for name, spoil := range map[string]func(*bocage.Ruleset){
		"another decision": func(rs *bocage.Ruleset) {
			rs.Namings[0].Cells = []bocage.NamedCell{{Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 443, Last: 443}, Decision: rs.Default}}
		},
		"other ports":      func(rs *bocage.Ruleset) { rs.Namings[0].Cells[0].Ports.Last++ },
		"no decision":      func(rs *bocage.Ruleset) { rs.Namings[0].Cells[0].Decision = 1 },
		"an unknown group": func(rs *bocage.Ruleset) { rs.Namings[0].From = append([]bocage.Group{7}, rs.Namings[0].From...) },
		"an unknown name":  func(rs *bocage.Ruleset) { rs.Namings[0].To = append([]bocage.Group{7}, rs.Namings[0].To...) },
		"twice": func(rs *bocage.Ruleset) {
			again := rs.Namings[0]
			again.From = again.From[len(again.From)-1:]
			rs.Namings = append(rs.Namings, again)
			slices.SortFunc(rs.Namings, bocage.CompareNamings)
		},
		"in a rule, too": func(rs *bocage.Ruleset) {
			n := rs.Namings[0]
			rs.Rules = append(slices.Clone(rs.Rules), bocage.Rule{From: n.From[0], To: n.To[0], Protocol: n.Cells[0].Protocol, Ports: n.Cells[0].Ports, Decision: n.Cells[0].Decision})
			slices.SortFunc(rs.Rules, bocage.CompareRules)
		},
		"out of order":       func(rs *bocage.Ruleset) { slices.Reverse(rs.Namings[0].From) },
		"cells that overlap": func(rs *bocage.Ruleset) { rs.Namings[0].Cells = append(rs.Namings[0].Cells, rs.Namings[0].Cells[0]) },
	} {
		spoiled := rs.Copy()
		spoiled.Namings = nil
		for _, n := range rs.Namings {
			spoiled.Namings = append(spoiled.Namings, bocage.Naming{From: slices.Clone(n.From), To: slices.Clone(n.To), Cells: slices.Clone(n.Cells)})
		}
		spoil(spoiled)
		if len(prove.Failed(prove.Prove(in, spoiled))) == 0 {
			t.Errorf("%s: every proof holds", name)
		}
	}
}
