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

// TestNothingBeginsUnseen compiles just before and at the moment that an output names
// as the next, with exceptions that are yet to begin: until then nothing changes, and
// whatever begins at all has such a moment.
func TestNothingBeginsUnseen(t *testing.T) {
	begun := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		out := compile.Compile(in)
		for !out.Expires.IsZero() {
			before := in
			before.Now = out.Expires.Add(-1)
			just := compile.Compile(before)
			if !just.Expires.Equal(out.Expires) {
				t.Fatalf("at %s the next change is at %s, just before at %s", in.Now, out.Expires, just.Expires)
			}
			each(t, 40, func(_ int, f bocage.Flow) {
				f.At = before.Now
				is, has := just.Ruleset().Decide(f)
				if was, had := out.Ruleset().Decide(f); was != is || had.Code != has.Code || had.Would != has.Would {
					t.Fatalf("%s just before %s: compiled at %s it is %s (would %s), compiled then %s (would %s)\n%s", f,
						out.Expires, in.Now, was, had.Would, is, has.Would, policytest.Describe(in))
				}
			})
			in.Now = out.Expires
			out = compile.Compile(in)
		}
		for _, e := range in.Exceptions { // at the end all that begin have begun
			if e.Begins().After(in.Now) && e.Begins().Before(e.Spec.Until) && !slices.ContainsFunc(out.Findings(), func(f compile.Finding) bool {
				return f.Object.Kind == "Exception" && f.Object.Name == e.Name && f.Reason != compile.NotBegun
			}) {
				t.Fatalf("Exception %s begins at %s, and at %s no more change is named\n%s", e.Name, e.Begins(), in.Now, policytest.Describe(in))
			} else if e.Begins().After(policytest.Now) {
				begun++
			}
		}
	})
	t.Logf("%d exceptions began", begun)
}
