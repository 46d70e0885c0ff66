package compile

import "bocage.dev/bocage"

// statement is one thing that one author says about every flow from one set of
// subjects to another over a set of ports.
type statement struct {
	kind     kind
	from, to side
	ports    ports
	by       []bocage.Ref // a contract has two authors
	duty     duty
}

// kind says how a statement enters the lattice.
type kind uint8

const (
	allow  kind = iota // joins base reach: a contract with both halves, or a grant
	refuse             // meets reach: a guardrail's never
	owe                // joins the duties of allowed cells
	mark               // joins the duties of every cell, refused ones included
	divert             // raises the disposition of refused cells: a decoy
)

// weak statements say nothing about a cell that nobody allows.
func (s *statement) weak() bool { return s.kind == owe }

// duty is what a cell owes.
type duty struct {
	profile string // to be inspected with; empty: not
	log     bool   // to be kept in full detail
	// impossible says that the duty cannot be kept today: what owes it is
	// refused until it can.
	impossible bool
}

// state adds a statement that covers at least one cell.
func (c *compiler) state(s statement) {
	if s.from.empty() || s.to.empty() || s.ports.empty() {
		return
	}
	c.statements = append(c.statements, s)
}
