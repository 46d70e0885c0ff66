package compile

import (
	"encoding/binary"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// decision is a Decision before it has a number.
type decision struct {
	verdict  bocage.Verdict
	code     bocage.ReasonCode
	profiles []string // sorted
	log      bool
	by       []bocage.Ref
}

// decisions holds every distinct decision once, so that equal ones compare as
// numbers.
type decisions struct {
	list      []decision
	byContent map[string]int32
	byCause   map[string]int32 // by the numbers of the statements that cover the cell
	scratch   []byte
}

// decide combines the statements that cover one cell, given in order.
func (c *compiler) decide(covering []int32) int32 {
	d := &c.decisions
	if d.byContent == nil {
		d.byContent, d.byCause = map[string]int32{}, map[string]int32{}
	}
	d.scratch = appendNumbers(d.scratch[:0], covering)
	if i, known := d.byCause[string(d.scratch)]; known {
		return i
	}
	cause := string(d.scratch)
	i := d.intern(c.combine(covering))
	d.byCause[cause] = i
	return i
}

// combine is the lattice: anyone may refuse, nobody below can reopen, and duties
// add up.
func (c *compiler) combine(covering []int32) decision {
	var allows, refusals, marks, duties, impossible, diverts []bocage.Ref
	var d decision
	var owed []string
	marked, owesLog := false, false
	for _, i := range covering {
		s := &c.statements[i]
		switch s.kind {
		case allow:
			allows = append(allows, s.by...)
		case refuse:
			refusals = append(refusals, s.by...)
		case mark:
			marks, marked = append(marks, s.by...), true
		case divert:
			diverts = append(diverts, s.by...)
		case owe:
			if s.duty.impossible {
				impossible = append(impossible, s.by...)
				continue
			}
			duties = append(duties, s.by...)
			owesLog = owesLog || s.duty.log
			if s.duty.profile != "" {
				owed = append(owed, s.duty.profile)
			}
		}
	}
	d.log = marked
	switch {
	case len(refusals) > 0:
		d.verdict, d.code, d.by = bocage.VerdictDrop, bocage.ReasonGuardrail, refusals
	case len(allows) == 0:
		d.verdict, d.code = bocage.VerdictDrop, bocage.ReasonDefaultDeny
	case len(impossible) > 0:
		d.verdict, d.code, d.by = bocage.VerdictDrop, bocage.ReasonGuardrail, impossible
	default:
		d.verdict, d.code, d.by = bocage.VerdictAllow, bocage.ReasonRule, append(allows, duties...)
		d.log = marked || owesLog
		if len(owed) > 0 {
			slices.Sort(owed)
			d.verdict, d.profiles = bocage.VerdictInspect, slices.Compact(owed)
		}
	}
	d.by = append(d.by, marks...)
	if !d.verdict.Allowed() && len(diverts) > 0 {
		d.verdict, d.by = bocage.VerdictDecoy, append(d.by, diverts...)
	}
	d.by = unique(d.by)
	return d
}

// unique drops later mentions and keeps the order.
func unique(refs []bocage.Ref) []bocage.Ref {
	out := refs[:0:0]
	for _, r := range refs {
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

func (d *decisions) intern(x decision) int32 {
	key := x.key()
	if i, known := d.byContent[key]; known {
		return i
	}
	i := int32(len(d.list))
	d.list = append(d.list, x)
	d.byContent[key] = i
	return i
}

// key names the decision's content: its number is a hash of it. Where objects
// were declared is left out, so that moving a file renumbers nothing.
func (d *decision) key() string {
	var b strings.Builder
	b.WriteString(d.verdict.String())
	b.WriteByte(' ')
	b.WriteString(d.code.String())
	if d.log {
		b.WriteString(" log")
	}
	for _, p := range d.profiles {
		b.WriteString(" +")
		b.WriteString(p)
	}
	for _, r := range d.by {
		for _, s := range [4]string{r.Kind, r.Namespace, r.Name, r.Field} {
			b.WriteByte(0)
			b.WriteString(s)
		}
	}
	return b.String()
}

func appendNumbers(b []byte, numbers []int32) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}
