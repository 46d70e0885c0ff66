package compile

import "bocage.dev/bocage"

// CompileSpelling is Compile with another bound on how large sites may be whose
// refusals are spelled out pair by pair.
func CompileSpelling(in Input, most int) Output { return NewCompilerSpelling(most).Compile(in) }

// NewCompilerSpelling is NewCompiler with that bound.
func NewCompilerSpelling(most int) *Compiler { return NewCompilerNarrow(most, mostNarrowAllowed) }

// NewCompilerNarrow is that with another bound on the pairs of narrow statements: with
// none, all is said of classes; with many, what is allowed is said pair by pair.
func NewCompilerNarrow(most, narrow int) *Compiler {
	return &Compiler{spelled: most, narrow: narrow, hands: hands{1, 1}}
}

// NewCompilerOfHands is NewCompilerNarrow that divides all work among so many, however
// little there is.
func NewCompilerOfHands(most, narrow, hands int) *Compiler {
	k := NewCompilerNarrow(most, narrow)
	k.hands.count = hands
	return k
}

// NewSparingCutter is NewCutter for hosts that take no more than so many reasons.
func NewSparingCutter(rs *bocage.Ruleset, in Input, most int) *Cutter {
	c := NewCutter(rs, in)
	if c.reasons != nil {
		c.reasons.most = most
	}
	return c
}

// Told waits until findings are found out, and does not list them.
func (o Output) Told() { o.findings.wait() }
