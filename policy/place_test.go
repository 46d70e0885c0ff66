package policy

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestDiffers compares what hosts get of two compilations with what is said to
// differ: where nothing does, the bytes are the same, and equal content has equal
// digests whatever it is numbered.
func TestDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		sortInput(&in)
		other := in
		switch rapid.IntRange(0, 4).Draw(t, "what changes") {
		case 0:
			other = policytest.Draw(t)
			sortInput(&other)
		case 1:
			other.Quarantines = nil
		case 2:
			other.Applications = in.Applications[:len(in.Applications)/2]
		case 3:
			other.Guardrails = in.Guardrails[:len(in.Guardrails)/2]
		case 4:
			other.Workloads = in.Workloads[:len(in.Workloads)/2]
		}
		other.Now = in.Now
		from := (&outcome{input: in, output: compile.Compile(in)}).complete()
		to := (&outcome{input: other, output: compile.Compile(other)}).complete()
		d := differs(from, to)
		for _, host := range []string{"h0", "h1", "h2", "h3", "elsewhere"} {
			if d.at(host) {
				continue
			}
			a, b := encodedFor(t, from, host, 1), encodedFor(t, to, host, 1)
			if !bytes.Equal(a, b) {
				t.Fatalf("%s is said to get the same, and gets\n%s\nand\n%s", host, a, b)
			}
			x, errX := DecodeRuleset(a)
			y, errY := DecodeRuleset(encodedFor(t, to, host, 7))
			if errX != nil || errY != nil || x.Digest != y.Digest || y.Generation != 7 {
				t.Fatalf("%s: digests %s and %s of the same content", host, x.Digest, y.Digest)
			}
		}
	})
}

func encodedFor(t *rapid.T, o *outcome, host string, number uint64) []byte {
	e, err := o.encoder()
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.encode(e.numbered(host, number, time.Time{}))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTurn draws what people, time and hosts do to a rollout. A policy is in force
// only after its stages, unless there is nothing before it; what is held stays.
func TestTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := bocage.RolloutSpec{
			ShadowSeconds: int64(rapid.IntRange(0, 2).Draw(t, "shadow")) * 10, CanarySeconds: int64(rapid.IntRange(0, 2).Draw(t, "canary seconds")) * 10,
			ConfirmSeconds: int64(rapid.IntRange(0, 1).Draw(t, "confirm")) * 30, Canary: []string{"h1"}, MostNewlyRefused: 0,
		}
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		r := record{}
		live := "a"
		started := map[string]time.Time{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 12).Draw(t, "seconds")) * time.Second)
			if rapid.IntRange(0, 4).Draw(t, "declare") == 0 {
				live = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "live")
			}
			f := facts{replayed: rapid.Bool().Draw(t, "replayed"), refused: int64(rapid.SampledFrom([]int{0, 0, 0, 3}).Draw(t, "refused")), refusing: map[uint64][]string{}}
			before := r
			var notices []notice
			r, notices = r.turn(live, spec, f, now)
			if r.Base.Policy != before.Base.Policy && before.Base.Number > 0 && r.Pin == nil {
				c := before.Candidate
				needs := time.Duration(spec.ShadowSeconds+spec.CanarySeconds) * time.Second
				switch {
				case r.Base.Policy != live:
					t.Fatalf("%s is in force and %s is declared", r.Base.Policy, live)
				case needs > 0 && c == nil:
					t.Fatalf("%s is in force without any stage", live)
				case needs > 0 && now.Sub(started[live]) < needs:
					t.Fatalf("%s is in force after %s, and its stages last %s", live, now.Sub(started[live]), needs)
				case spec.ConfirmSeconds > 0 && r.ConfirmBy.IsZero():
					t.Fatal("nobody has to confirm it")
				}
			}
			if before.Candidate == nil && r.Candidate != nil || r.Candidate != nil && before.Candidate != nil && before.Candidate.Policy != r.Candidate.Policy {
				started[live] = now
			}
			if r.Candidate != nil && (r.Pin != nil || r.Candidate.Policy == r.Base.Policy || r.Candidate.Stage == "") {
				t.Fatalf("a candidate that should not be: %+v", r.Candidate)
			}
			if r.Ended != nil && before.Ended == nil && len(notices) == 0 {
				t.Fatal("a rollout ended and nobody is told")
			}
			// What the builder adds.
			if r.Base.Policy != before.Base.Policy || r.Base.Number == 0 {
				r.Number++
				r.Base = version{r.Number, "digest of " + r.Base.Policy, r.Base.Policy}
			}
			if r.Candidate != nil && r.Candidate.Number <= r.Base.Number {
				r.Number++
				r.Candidate.Number, r.Candidate.Digest = r.Number, "digest of "+live
			}
			if r.ConfirmBy.IsZero() {
				r.Confirmed = r.Base
			}
			if same, _ := r.turn(live, spec, facts{refusing: map[uint64][]string{}}, now); same.Base.Policy != r.Base.Policy {
				t.Fatal("turning again changes what is in force")
			}
			if rapid.IntRange(0, 9).Draw(t, "confirm now") == 0 {
				r.ConfirmBy, r.Pin, r.Ended = time.Time{}, nil, nil
				r.Confirmed = r.Base
			}
		}
	})
}
