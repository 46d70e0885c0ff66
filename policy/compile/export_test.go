package compile

import (
	"fmt"
	"slices"

	"bocage.dev/bocage"
)

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

// Stale names a selector of which what is kept is not what it picks; empty: none.
func (k *Compiler) Stale() string {
	k.last.later.wait()
	p, size := k.last.pop, 0
	for _, pick := range p.picks.byKey {
		size += pick.size()
		if now := p.pick(pick.namespaces, pick.selector); !slices.Equal(now, pick.list) {
			return fmt.Sprintf("%q %+v picks %v, and %v is kept", pick.namespaces, *pick.selector, now, pick.list)
		}
		if !p.picks.ordered[pick] {
			continue
		}
		var names []called
		for _, i := range pick.list {
			names = append(names, called{p.subjects[i].members[0].NamespacedName(), i})
		}
		slices.SortFunc(names, compareCalled)
		if !slices.Equal(names, pick.names) {
			return fmt.Sprintf("%q %+v picks %v in order, and %v is kept", pick.namespaces, *pick.selector, names, pick.names)
		}
	}
	if size != p.picks.size {
		return fmt.Sprintf("%d subjects and selectors are kept, and %d are counted", size, p.picks.size)
	}
	return ""
}

// Shifted counts the broad statements that the last change kept for others.
func (k *Compiler) Shifted() int {
	n := 0
	for _, r := range k.last.resided {
		if r.shifted {
			n++
		}
	}
	return n
}

// Leftover counts what is known of statements that were withdrawn and of classes that
// nobody is in.
func (k *Compiler) Leftover() int {
	c, n := k.last, 0
	c.later.wait()
	for _, known := range [2]map[string]int32{c.decisions.byCause, c.grid.tables.byCause} {
		for cause := range known {
			if c.namesWithdrawn(cause) {
				n++
			}
		}
	}
	for _, side := range [2]*classes{&c.grid.sources, &c.grid.targets} {
		for _, i := range side.bySum {
			if len(side.list[i].members) == 0 {
				n++
			}
		}
	}
	return n
}
