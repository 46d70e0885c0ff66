package compile

import (
	"time"

	"bocage.dev/bocage"
)

// statement is one thing that one author says about every flow from one set of
// subjects to another over a set of ports.
type statement struct {
	kind     kind
	from, to side
	ports    ports
	by       []bocage.Ref // a contract has two authors
	duty     duty
	// dutyBy is the author of the duty that comes with an allow.
	dutyBy bocage.Ref
	// until is when it ends by itself; zero: it does not. What has not begun yet
	// is never stated.
	until time.Time
	// guardrail is whose never or separate it is, whose duty, or from which it
	// excepts.
	guardrail string
	// disposition is what is wished for the cell if it is refused: of a refuse
	// statement, if that is what refuses it.
	disposition bocage.Verdict
	// shy statements change nothing in a cell that nobody allows.
	shy bool
	// kube is what a kube statement says, or one that accepts a name.
	kube *kubeRule
	// owed is what an owe statement of a guardrail asks for, if it can be kept:
	// then it has no duty of its own.
	owed *owed
}

// kind says how a statement enters the lattice.
type kind uint8

const (
	allow         kind = iota // joins base reach: a contract with both halves, or a grant
	kube                      // what Kubernetes' policies say of one end (kubernetes.go)
	isolate                   // meets reach: an automated quarantine around protected cells
	refuse                    // meets reach: a guardrail's never or separate
	answer                    // meets reach: a response to a threat condition
	except                    // lifts one guardrail's refuse and owe
	protect                   // lifts isolate, answer, and duties that yield
	owe                       // joins the duties of allowed cells
	mark                      // joins the duties of every cell, refused ones included
	dispose                   // raises the disposition of refused cells
	disposeSilent             // raises it where nobody but default deny or Kubernetes refuses
	divert                    // raises the disposition of refused cells: a decoy
	allowName                 // allows, towards a name (names.go)
	acceptName                // a ClusterNetworkPolicy that accepts a name
)

// weak statements say nothing about a cell that nobody allows.
func (s *statement) weak() bool { return s.kind == owe || s.shy }

// mayAllow reports whether the statement may open a cell.
func (s *statement) mayAllow() bool {
	return s.kind == allow || s.kind == kube || s.towardsName()
}

// towardsName reports whether the statement opens a name, and not the address that it has.
func (s *statement) towardsName() bool { return s.kind == allowName || s.kind == acceptName }

// duty is what a cell owes.
type duty struct {
	bocage.Duties
	// impossible says that the duty cannot be kept today: what owes it is
	// refused until it can.
	impossible bool
	// yields says that it comes from a threat condition or a response and may cost a
	// flow packets: protected cells do not owe it.
	yields bool
}

// state adds a statement that covers at least one cell.
func (c *compiler) state(s statement) {
	if s.from.empty() || s.to.empty() || s.ports.empty() {
		return
	}
	c.stated = append(c.stated, s)
}

// prepare gathers what authors' statements depend on besides their own objects.
func (c *compiler) prepare() {
	c.protected = nil
	c.exceptions = map[string][]*bocage.Exception{}
	for _, e := range c.in.exceptions {
		c.exceptions[e.Spec.Guardrail] = append(c.exceptions[e.Spec.Guardrail], e)
	}
	for _, g := range c.in.guardrails {
		for _, m := range g.Spec.Protect {
			for _, b := range c.resolve(m) {
				if !b.from.empty() && !b.to.empty() && !b.ports.empty() {
					c.protected = append(c.protected, b)
				}
			}
		}
	}
}

// wished reads a disposition. A decoy that is wished for counts as drop: where
// one stands, its Decoy diverts by itself.
func wished(disposition string) bocage.Verdict {
	if disposition == bocage.DispositionReject {
		return bocage.VerdictReject
	}
	return bocage.VerdictDrop
}
