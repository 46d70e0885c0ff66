package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// TestExplainBystanders: of a flow between two ends outside nobody decides.
func TestExplainBystanders(t *testing.T) {
	x := bocage.Explanation{Verdict: bocage.VerdictAllow, Decider: bocage.Ref{Kind: "Default", Name: "deny"},
		Reason: bocage.Reason{Code: bocage.ReasonDefaultDeny, Would: bocage.VerdictDrop},
		Flow:   bocage.Flow{Source: netip.MustParseAddr("192.0.2.1"), Destination: netip.MustParseAddr("192.0.2.2"), DestinationPort: 80, Protocol: bocage.ProtocolTCP},
		Layers: []bocage.Layer{{Name: "base", Result: "nothing"}, {Name: "kubernetes-policies", Result: "something", By: []bocage.Ref{{Kind: "Scope", Name: "s"}}}}}
	text := explanationText(t, x)
	if !strings.Contains(text, "because  neither end is behind an enforcement point") || strings.Contains(text, "would") {
		t.Errorf("of two ends outside:\n%s", text)
	}
	// Results stand in one column, however long a layer's name is.
	if !strings.Contains(text, "  base                 nothing\n  kubernetes-policies  something\n                         Scope s\n") {
		t.Errorf("columns:\n%s", text)
	}
	x.Source.Workload = "a/b"
	if text := explanationText(t, x); !strings.Contains(text, "because  default-deny") || !strings.Contains(text, "would    drop") {
		t.Errorf("of one end outside:\n%s", text)
	}
}

// TestExplainNames: where a name is, nobody knows, so that no address is shown.
func TestExplainNames(t *testing.T) {
	x := bocage.Explanation{Verdict: bocage.VerdictAllow, Decider: bocage.Ref{Kind: "Application", Namespace: "a", Name: "b", Field: "spec.consumes[0]"},
		Reason: bocage.Reason{Code: bocage.ReasonRule, Would: bocage.VerdictAllow}, Source: bocage.Peer{Workload: "a/b"}, Name: "api.example.com", Anywhere: true,
		Flow: bocage.Flow{Source: netip.MustParseAddr("192.0.2.1"), Destination: netip.MustParseAddr("1.113.57.201"), DestinationPort: 443, Protocol: bocage.ProtocolTCP},
		Elsewhere: []bocage.Elsewhere{
			{Verdict: bocage.VerdictDrop, Reason: bocage.Reason{Code: bocage.ReasonDefaultDeny, Would: bocage.VerdictDrop}, Decider: bocage.Ref{Kind: "Default", Name: "deny"}},
			{Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, More: 3, Verdict: bocage.VerdictAllow,
				Reason: bocage.Reason{Code: bocage.ReasonGuardrail, Would: bocage.VerdictReject}, Decider: bocage.Ref{Kind: "Guardrail", Name: "out"}}}}
	text := explanationText(t, x)
	for _, want := range []string{"allow: a/b → api.example.com TCP/443\n", "an address that the DNS did not give for the name: drop, default-deny by Default deny\n",
		"if the name has an address in 198.51.100.0/24, 3 more: allow, guardrail by Guardrail out (would reject, if a scope enforced)\n"} {
		if !strings.Contains(text, want) || strings.Contains(text, "1.113") {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	x.Anywhere = false
	if text := explanationText(t, x); !strings.Contains(text, "1.113.57.201 as api.example.com TCP/443\n") {
		t.Errorf("at an address:\n%s", text)
	}
}

func explanationText(t *testing.T, x bocage.Explanation) string {
	t.Helper()
	var out bytes.Buffer
	if err := (&env{out: &out}).printExplanation(x); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestHistory: what was kept back, or taken back, does not read as if it held, and what
// came into force after it was kept back does not read as if it took that back.
func TestHistory(t *testing.T) {
	generation := func(name, digest, stage string, changed ...string) bocage.Resource {
		return &bocage.Generation{ObjectMeta: bocage.ObjectMeta{Name: name}, Status: bocage.GenerationStatus{Digest: digest, Stage: stage, Changed: changed}}
	}
	told := func(name, digest, stage, kind, message string) bocage.Resource {
		g := generation(name, digest, stage, "Scope s").(*bocage.Generation)
		g.Status.Conditions = []bocage.Condition{{Type: kind, Status: "False", Message: message}}
		return g
	}
	var out bytes.Buffer
	if err := (&env{out: &out}).printHistory([]bocage.Resource{
		generation("g1", "one", ""), generation("g2", "two", bocage.StageRolledBack, "Application a/b"), generation("g3", "three", "", "Scope s"),
		generation("g4", "one", bocage.StageActive, "Scope s"), generation("g5", "four", bocage.StageActive, "Scope s", "Scope t", "Scope u", "Scope v"),
		generation("g6", "five", bocage.StageBlocked, "Guardrail tp"), generation("g7", "five", bocage.StageSuperseded, "Guardrail tp"),
		generation("g8", "five", bocage.StageActive), told("g9", "six", bocage.StageEnded, bocage.ConditionRolledOut, "2 kinds of flow newly refused"),
		told("g10", "seven", bocage.StageRolledBack, bocage.ConditionRolledOut, "rolled back by ann"),
		told("g11", "eight", bocage.StageSuperseded, bocage.ConditionRolledOut, "replaced by generation 12 before anybody confirmed it"),
		told("g12", "nine", bocage.StageBlocked, bocage.ConditionProved, strings.Repeat("x", 130)),
	}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{"CHANGED", "-", "rolled back: Application a/b", "Scope s", "back to g1, without Scope s", "Scope s, Scope t, Scope u and 1 more",
		"kept back: Guardrail tp", "Guardrail tp", "back to g7", "never in force everywhere: Scope s: 2 kinds of flow newly refused",
		"Scope s: rolled back by ann", "Scope s: replaced by generation 12 before anybody confirmed it", "kept back: Scope s: " + strings.Repeat("x", 120) + "... (-o wide tells all)"} {
		if !strings.HasSuffix(lines[i], "   "+want) {
			t.Errorf("%q does not end with %q", lines[i], want)
		}
	}
}

// TestPlanOfManyChanges: of thousands of changes a screen shows some of each kind, what is
// lost first, and says how many there are; few are shown in their order.
func TestPlanOfManyChanges(t *testing.T) {
	var plan bocage.PlanResult
	for i := range 200 {
		change := bocage.ReachChange{From: fmt.Sprintf("ns app=a%03d", i), To: "everyone else", Before: bocage.VerdictDrop, After: bocage.VerdictAllow}
		if i%20 == 19 {
			change.Before, change.After = change.After, change.Before
		}
		plan.Reach = append(plan.Reach, change)
	}
	print := func(form string, of bocage.PlanResult) []string {
		var out bytes.Buffer
		if err := (&env{out: &out, output: form}).printReach(of); err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
	lines := print("", plan)
	if len(lines) != 1+10+fewReach+2 || lines[0] != "200 changes of reach: 10 lost, 190 gained, 0 with another disposition or other duties" ||
		!strings.HasPrefix(lines[1], "- ns app=a019") || !strings.HasPrefix(lines[11], "+ ns app=a000") || !strings.Contains(lines[41], "and 160 more: -o wide") ||
		!strings.Contains(lines[42], "(everyone else: every workload and address outside") {
		t.Errorf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	if lines := print("wide", plan); len(lines) != 201 || !strings.HasPrefix(lines[0], "+ ns app=a000") {
		t.Errorf("wide: %d lines", len(lines))
	}
	plan.Reach = plan.Reach[:3*fewReach]
	if lines := print("", plan); len(lines) != 3*fewReach+1 || !strings.HasPrefix(lines[19], "- ns app=a019") {
		t.Errorf("few: %d lines", len(lines))
	}
}
