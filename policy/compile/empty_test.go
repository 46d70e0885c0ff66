package compile_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestWhatIsToldEmptyAllowsNothing: of no contract and no grant of which authors are
// told that it allows nothing does a flow say that it is allowed by it, and no workload
// is one that nobody can be.
func TestWhatIsToldEmptyAllowsNothing(t *testing.T) {
	empty, impossible := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		if rapid.Bool().Draw(t, "refused in half") { // so that several are empty
			in.Guardrails = append(slices.Clone(in.Guardrails), &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "half"}, Spec: bocage.GuardrailSpec{
				Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 1, EndPort: rapid.SampledFrom([]uint16{80, 443, 65534}).Draw(t, "last")}}},
					{To: bocage.Side{Namespaces: []string{"shop", "pay"}}}}}})
		}
		out := compile.Compile(in)
		var told []string
		for _, f := range out.Findings() {
			if f.Reason == compile.Contradiction {
				told = append(told, f.Message)
				empty++
			}
			if f.Reason == compile.NothingMatches && strings.Contains(f.Message, "whoever joins") {
				impossible++
			}
		}
		rs := out.Ruleset()
		each(t, 20, func(_ int, f bocage.Flow) {
			_, reason := rs.Decide(f)
			if !reason.Would.Allowed() {
				return
			}
			d, _ := rs.Decision(reason.Decision)
			for _, first := range d.By {
				texts := []string{first.String() + " allows nothing", "the contract of " + first.String() + " allows nothing"}
				for _, second := range d.By {
					texts = append(texts, "the contract of "+first.String()+" with "+second.String()+" allows nothing")
				}
				for _, text := range texts {
					if i := slices.IndexFunc(told, func(message string) bool { return strings.HasPrefix(message, text) }); i >= 0 {
						t.Fatalf("%s is allowed by %v, and it is said that %s\n%s", f, d.By, told[i], policytest.Describe(in))
					}
				}
			}
		})
	})
	t.Logf("%d times something is empty, %d times a selector is impossible", empty, impossible)
}
