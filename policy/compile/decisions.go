package compile

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// decision is a Decision before it has a number.
type decision struct {
	verdict  bocage.Verdict
	code     bocage.ReasonCode
	profiles []string // sorted
	duties   bocage.Duties
	log      bool
	final    bool // of a refusal by Kubernetes: see bocage.Decision
	ranks    bocage.Ranks
	by       []bocage.Ref
	// until is when it gives way to the decision with the number then; zero:
	// never.
	until time.Time
	then  int32
	// owing is set where guardrails ask for duties: what they ask for may change
	// without another decision coming of it.
	owing *owing
}

// decisions holds every distinct decision once, so that equal ones compare as
// numbers. A successor has a
// lower number than what gives way to it.
type decisions struct {
	list      []decision
	keys      []string // of list
	renewed   []int32  // decisions whose authors were declared elsewhere or that owe something else since
	owing     map[*owed][]int32
	byContent map[string]int32
	byCause   map[string]int32 // by the numbers of the statements that cover the cell and count
	babel     map[int32]bool   // those that ask for several protocols at once
	scratch   []byte
}

// decide combines the statements that cover one cell.
func (c *compiler) decide(covering []int32) int32 {
	d := &c.decisions
	if d.byContent == nil {
		d.byContent, d.byCause, d.owing, d.babel = map[string]int32{}, map[string]int32{}, map[*owed][]int32{}, map[int32]bool{}
	}
	counting := c.judge.counting(covering)
	d.scratch = appendNumbers(d.scratch[:0], counting)
	if i, known := d.byCause[string(d.scratch)]; known {
		return i
	}
	cause := string(d.scratch)
	i := d.internChain(c.combined(counting), "")
	d.byCause[cause] = i
	return i
}

// combined decides a cell that the statements cover.
func (c *compiler) combined(counting []int32) []decision {
	statements := make([]*statement, len(counting))
	for n, s := range counting {
		statements[n] = &c.statements[s]
	}
	return combine(statements, c.now)
}

// counting leaves out statements that make no difference next to the others, so that a
// thousand contracts that one guardrail refuses are decided once: what is owed where
// nobody allows or somebody refuses, who allows there, and how to refuse what is not.
func (j *judge) counting(covering []int32) []int32 {
	var kinds uint32 // a set
	mayFail, named := false, false
	for _, n := range covering {
		s := &j.c.statements[n]
		kinds |= 1 << s.kind
		mayFail = mayFail || s.duty.impossible
		named = named || s.towardsName()
	}
	has := func(list ...kind) bool {
		return slices.ContainsFunc(list, func(k kind) bool { return kinds&(1<<k) != 0 })
	}
	var idle uint32
	switch {
	case named: // nothing that refuses counts, and the rest does
	case has(refuse) && !has(except): // a guardrail's refusal never ends
		idle = 1<<allow | 1<<owe | 1<<disposeSilent
	case !has(allow, kube):
		idle = 1 << owe
	case has(allow) && !mayFail && !has(isolate, refuse, answer, kube):
		idle = 1<<dispose | 1<<disposeSilent | 1<<divert
	}
	if kinds&idle == 0 {
		return covering
	}
	out := j.counted[:0]
	for _, n := range covering {
		if idle&(1<<j.c.statements[n].kind) == 0 {
			out = append(out, n)
		}
	}
	j.counted = out
	return out
}

// combine decides a cell at now and at every later moment at which one of the
// statements that cover it ends. Each of the decisions but the last has the
// moment at which the next one follows. There are at most
// bocage.MostSuccessors more than the first: where there would be more, the last
// grants no exception and lets nothing else end, so that it only tightens.
func combine(covering []*statement, now time.Time) []decision {
	sortStatements(covering)
	if !slices.ContainsFunc(covering, func(s *statement) bool { return s.until.After(now) }) {
		return []decision{decideAt(covering, now, false)}
	}
	var chain []decision
	for _, moment := range moments(covering, now) {
		d := decideAt(covering, moment, false)
		n := len(chain)
		if n > bocage.MostSuccessors {
			break
		}
		if n > 0 && chain[n-1].equal(d) {
			continue
		}
		if n > 0 {
			chain[n-1].until = moment
		}
		if n == bocage.MostSuccessors && changesLater(covering, d, moment, now) {
			d = decideAt(covering, moment, true)
			if chain[n-1].equal(d) {
				chain[n-1].until = time.Time{}
				break
			}
		}
		chain = append(chain, d)
	}
	return chain
}

// changesLater reports whether the cell is ever decided otherwise after a moment.
func changesLater(covering []*statement, d decision, moment, now time.Time) bool {
	return slices.ContainsFunc(moments(covering, now), func(later time.Time) bool {
		if !later.After(moment) {
			return false
		}
		next := decideAt(covering, later, false)
		return !next.equal(d)
	})
}

// moments lists now and the ends of the statements after it, in order.
func moments(covering []*statement, now time.Time) []time.Time {
	out := []time.Time{now}
	for _, s := range covering {
		if s.until.After(now) {
			out = append(out, s.until)
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}

// sortStatements puts statements into the order of their authors, which does not
// depend on who was read first.
func sortStatements(list []*statement) {
	slices.SortStableFunc(list, func(a, b *statement) int {
		if a.kind != b.kind {
			return cmp.Compare(a.kind, b.kind)
		}
		return slices.CompareFunc(a.by, b.by, compareRefs)
	})
}

// decideAt is the lattice: anyone may refuse, nobody below can reopen, and duties
// add up. strict ignores exceptions.
func decideAt(covering []*statement, moment time.Time, strict bool) decision {
	var lifted map[string]*statement // by guardrail, the exception from it that lasts longest
	protected := false
	alive := make([]*statement, 0, len(covering))
	for _, s := range covering {
		if !s.until.IsZero() && !moment.Before(s.until) {
			continue
		}
		switch s.kind {
		case except:
			if !strict {
				if lifted == nil {
					lifted = map[string]*statement{}
				}
				if longest := lifted[s.guardrail]; longest == nil || s.until.After(longest.until) {
					lifted[s.guardrail] = s
				}
			}
		case protect:
			protected = true
		default:
			alive = append(alive, s)
		}
	}

	// A name is no place: what else allows or refuses is said of the address that goes
	// by it.
	named := slices.ContainsFunc(alive, (*statement).towardsName)
	var accept *statement // the first that accepts the name
	var allows, isolations, refusals, answers, marks, diverts, exceptions []bocage.Ref
	var kubes, owes []*statement
	var to []*owed
	var owed joined
	wish, silentWish := bocage.VerdictDrop, bocage.VerdictDrop
	for _, s := range alive {
		switch s.kind {
		case allow, isolate, refuse, answer, kube:
			if named {
				continue
			}
		}
		switch s.kind {
		case allow, allowName:
			allows = append(allows, s.by...)
			owed.add(s)
		case acceptName:
			if accept == nil || compareKube(s, accept) < 0 {
				accept = s
			}
		case kube:
			kubes = append(kubes, s)
		case isolate:
			if !protected {
				isolations = append(isolations, s.by...)
			}
		case refuse:
			if exception := lifted[s.guardrail]; exception != nil {
				exceptions = append(exceptions, exception.by...)
				continue
			}
			refusals = append(refusals, s.by...)
			wish = stronger(wish, s.disposition)
		case answer:
			if !protected {
				answers = append(answers, s.by...)
			}
		case owe:
			if exception := lifted[s.guardrail]; exception != nil {
				exceptions = append(exceptions, exception.by...)
				continue
			}
			switch {
			case s.owed == nil:
				owes = append(owes, s)
			case !slices.Contains(to, s.owed):
				to = append(to, s.owed)
			}
		case mark:
			marks = append(marks, s.by...)
		case dispose:
			wish = stronger(wish, s.disposition)
		case disposeSilent:
			silentWish = stronger(silentWish, s.disposition)
		case divert:
			diverts = append(diverts, s.by...)
		}
	}
	own := owed.owe(owes, protected)
	kubeSays, kubeBy, ranks := judgeKubernetes(kubes)
	if accept != nil {
		kubeSays, kubeBy, ranks = kubeAllows, accept.by, accept.kube.ranks()
	}
	var kubeRefusals []bocage.Ref
	if kubeSays == kubeRefuses {
		kubeRefusals = kubeBy
	}

	d := decision{verdict: bocage.VerdictDrop, then: unset, log: len(marks) > 0}
	switch refused := slices.Concat(isolations, refusals, kubeRefusals, answers); {
	case len(refused) > 0:
		d.by = refused
		switch {
		case len(isolations) > 0:
			d.code = bocage.ReasonQuarantine
		case len(refusals) > 0:
			d.code = bocage.ReasonGuardrail
		case len(kubeRefusals) > 0:
			d.code, d.final = bocage.ReasonKubernetes, true
			if len(answers) == 0 {
				d.ranks = ranks
			}
		default:
			d.code = bocage.ReasonThreat
		}
	case len(allows) == 0 && kubeSays == kubeWithholds:
		d.code, d.by, d.ranks = bocage.ReasonKubernetes, kubeBy, ranks
	case len(allows) == 0 && kubeSays != kubeAllows:
		d.code, d.ranks = bocage.ReasonDefaultDeny, ranks
	case len(owed.impossible) > 0:
		d.code, d.by = bocage.ReasonGuardrail, owed.impossible
	default:
		d.code = bocage.ReasonRule
		if len(allows) == 0 {
			d.code = bocage.ReasonKubernetes
		}
		if kubeSays == kubeAllows {
			allows, d.ranks = append(allows, kubeBy...), ranks
		}
		slices.SortFunc(exceptions, compareRefs)
		before, after := append(allows, owed.by[:own]...), append(exceptions, marks...)
		owed.by = owed.by[own:]
		if len(to) > 0 {
			d.owing = &owing{unique(before), owed, to, after, len(marks) > 0}
			d.finish()
			return d
		}
		d.keep(&owed, len(marks) > 0)
		d.by = unique(slices.Concat(before, owed.by, after))
		return d
	}
	d.by = append(d.by, marks...)
	if d.code == bocage.ReasonDefaultDeny || d.code == bocage.ReasonKubernetes {
		wish = stronger(wish, silentWish)
	}
	// Only where a decoy stands does anybody meet one.
	if len(diverts) > 0 {
		d.verdict, d.by = bocage.VerdictDecoy, append(d.by, diverts...)
	} else {
		d.verdict = wish
	}
	d.by = unique(d.by)
	return d
}

// logFull is the duty to keep a flow in full detail.
const logFull = "full"

// joined collects what a cell owes.
type joined struct {
	profiles, protocols []string
	duties              bocage.Duties
	by                  []bocage.Ref // authors of what can be kept
	impossible          []bocage.Ref // authors of what cannot
}

// add takes the duty that comes with an allow.
func (j *joined) add(s *statement) {
	if s.duty.Empty() {
		return
	}
	j.join(s.duty.Duties)
	j.by = append(j.by, s.dutyBy)
}

// owe takes duties, or notes that they cannot be kept. Where cells are protected, those
// that yield are not owed at all. It returns how many authors there were before.
func (j *joined) owe(owes []*statement, protected bool) int {
	before := len(j.by)
	for _, s := range owes {
		switch {
		case s.duty.yields && protected:
		case s.duty.impossible:
			j.impossible = append(j.impossible, s.by...)
		default:
			j.join(s.duty.Duties)
			j.by = append(j.by, s.by...)
		}
	}
	return before
}

// join takes the strictest of each duty; names add up.
func (j *joined) join(d bocage.Duties) {
	if d.Inspect != "" {
		j.profiles = append(j.profiles, d.Inspect)
	}
	if d.Verify != "" {
		j.protocols = append(j.protocols, d.Verify)
	}
	if d.Log != "" {
		j.duties.Log = logFull
	}
	if have := j.duties.RatePerSecond(); d.Rate != "" && (have == 0 || d.RatePerSecond() < have) {
		j.duties.Rate = d.Rate
	}
	j.duties.Whole = j.duties.Whole || d.Whole
	j.duties.Witness = j.duties.Witness || d.Witness
	j.duties.Provenance = j.duties.Provenance || d.Provenance
	j.duties.Assurance = max(j.duties.Assurance, d.Assurance)
}

func (j *joined) result() (profiles []string, duties bocage.Duties) {
	duties = j.duties
	profiles = sorted(j.profiles)
	duties.Inspect, duties.Verify = profileName(profiles), strings.Join(sorted(j.protocols), "+")
	return profiles, duties
}

// sorted returns the names in order, once each.
func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// stronger returns the disposition that counts of two.
func stronger(a, b bocage.Verdict) bocage.Verdict {
	if a == bocage.VerdictReject || b == bocage.VerdictReject {
		return bocage.VerdictReject
	}
	return bocage.VerdictDrop
}

// unique drops later mentions and keeps the order.
func unique(refs []bocage.Ref) []bocage.Ref {
	out := refs[:0:0]
	var seen map[bocage.Ref]bool
	if len(refs) > 16 {
		seen = make(map[bocage.Ref]bool, len(refs))
	}
	for _, r := range refs {
		if seen[r] || seen == nil && slices.Contains(out, r) {
			continue
		}
		if seen != nil {
			seen[r] = true
		}
		out = append(out, r)
	}
	return out
}

// equal reports whether two decisions are the same, ends apart.
func (d *decision) equal(o decision) bool {
	return d.verdict == o.verdict && d.code == o.code && d.log == o.log && d.final == o.final && d.ranks == o.ranks && d.duties == o.duties && slices.Equal(d.by, o.by)
}

// internChain gives the first of a chain of decisions its number. The key of a single
// one may be known already.
func (d *decisions) internChain(chain []decision, key string) int32 {
	next := int32(unset)
	for i := len(chain) - 1; i >= 0; i-- {
		chain[i].then = next
		if key == "" || len(chain) > 1 {
			key = d.key(&chain[i])
		}
		next = d.internKeyed(chain[i], key)
	}
	return next
}

func (d *decisions) intern(x decision) int32 { return d.internKeyed(x, d.key(&x)) }

func (d *decisions) internKeyed(x decision, key string) int32 {
	if i, known := d.byContent[key]; known {
		if !slices.Equal(d.list[i].by, x.by) {
			d.list[i].by, d.list[i].owing, d.renewed = x.by, x.owing, append(d.renewed, i)
		}
		return i
	}
	i := int32(len(d.list))
	d.list, d.keys = append(d.list, x), append(d.keys, key)
	d.byContent[key] = i
	if x.owing != nil {
		for _, o := range x.owing.to {
			d.owing[o] = append(d.owing[o], i)
		}
	}
	d.noteSpeech(i)
	return i
}

// noteSpeech notes whether a decision asks for several protocols at once.
func (d *decisions) noteSpeech(i int32) {
	if d.list[i].duties.Expects() == bocage.SpeechNothing {
		d.babel[i] = true
	} else {
		delete(d.babel, i)
	}
}

// key names the decision's content, that of its successors included: its number
// is a hash of it. Where objects were declared is left out, so that moving a file
// renumbers nothing, and so is what guardrails ask for (see owing).
func (d *decisions) key(x *decision) string {
	var b strings.Builder
	refs := func(list []bocage.Ref) {
		for _, r := range list {
			for _, s := range [4]string{r.Kind, r.Namespace, r.Name, r.Field} {
				b.WriteByte(0)
				b.WriteString(s)
			}
		}
	}
	for ; ; x = &d.list[x.then] {
		said, by := x, x.by
		if x.owing != nil {
			said, by = x.owing.without()
		}
		b.WriteString(said.verdict.String())
		b.WriteByte(' ')
		b.WriteString(x.code.String())
		if said.log {
			b.WriteString(" log")
		}
		if x.final {
			b.WriteString(" final")
		}
		if x.ranks != (bocage.Ranks{}) {
			fmt.Fprintf(&b, " before %d %d", x.ranks.Admin, x.ranks.Baseline)
		}
		for _, duty := range said.duties.List() {
			b.WriteString(" +")
			b.WriteString(duty)
		}
		refs(by)
		if x.until.IsZero() {
			return b.String()
		}
		b.WriteByte(1)
		b.WriteString(strconv.FormatInt(x.until.UnixNano(), 10))
		b.WriteByte(1)
	}
}

func appendNumbers(b []byte, numbers []int32) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}
