package compile_test

import (
	"fmt"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestHundredThousandEntries puts as many entries into one object: each counts,
// and the work stays in proportion (a quadratic step anywhere would take hours).
func TestHundredThousandEntries(t *testing.T) {
	in := shop()
	g := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}}
	for i := range 100_000 {
		g.Spec.Never = append(g.Spec.Never, bocage.CellMatch{From: bocage.Side{Workload: ptr(named(fmt.Sprintf("nobody-%d", i)))}})
		if i%2 == 0 { // every odd port is refused to everyone, every even one to nobody
			g.Spec.Never[i] = bocage.CellMatch{Ports: []bocage.PortMatch{{Port: uint16(i%65534 + 1)}}}
		}
	}
	g.Spec.Grant = []bocage.CellMatch{{To: bocage.Side{Workload: ptr(named("db"))}}}
	in.Guardrails = []*bocage.Guardrail{g}
	rs := compile.Compile(in).Ruleset()
	for port, want := range map[uint16]bocage.ReasonCode{1: bocage.ReasonGuardrail, 2: bocage.ReasonRule, 8079: bocage.ReasonGuardrail, 65533: bocage.ReasonGuardrail, 65534: bocage.ReasonRule} {
		if verdict, d := askAt(rs, 0, 2, port, policytest.Now); d.Code != want {
			t.Errorf("port %d: %s by %d authors", port, verdict, len(d.By))
		}
	}
}
