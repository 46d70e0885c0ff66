package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
)

// TracePacket asks the agent of this host what would become of a packet.
func TracePacket(ctx context.Context, cfg Config, p bocage.TracePacket) (bocage.Trace, error) {
	var trace bocage.Trace
	err := askAgent(ctx, cfg, http.MethodPost, "/trace", p, &trace)
	return trace, err
}

// serveTrace answers a question about a packet. Who may open the socket may ask.
func (a *agentProcess) serveTrace(w http.ResponseWriter, r *http.Request) {
	const most = 1 << 16
	var p bocage.TracePacket
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, most)).Decode(&p); err != nil {
		http.Error(w, "the question is no description of a packet: "+err.Error(), http.StatusBadRequest)
		return
	}
	trace, err := a.trace(p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	a.logger.Info("a packet was asked about", "interface", trace.Interface, "outcome", trace.Outcome, "disagreement", trace.Disagreement)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(trace) // whoever asked has gone
}

// trace finds the enforcement point, builds the frame, asks the programs, asks the
// model, and compares.
func (a *agentProcess) trace(p bocage.TracePacket) (bocage.Trace, error) {
	if err := p.Validate().Err(); err != nil {
		return bocage.Trace{}, err
	}
	ruleset := a.ruleset.Load()
	source, destination, err := a.ends(ruleset, p)
	if err != nil {
		return bocage.Trace{}, err
	}
	at, direction, err := a.point(p, source, destination)
	if err != nil {
		return bocage.Trace{}, err
	}
	frame := p.Frame
	if len(frame) == 0 {
		if frame, err = a.frame(p, at, direction, source, destination); err != nil {
			return bocage.Trace{}, err
		}
	}
	var passage dataplane.Passage
	for tries := 3; ; tries-- { // a hardware address may be learned while the programs are loaded
		if passage, err = a.dataplane.Trace(dataplane.Question{Ifindex: at.Ifindex, From: direction == bocage.DirectionFrom, Frame: frame}); err != nil {
			return bocage.Trace{}, err
		}
		if len(p.Frame) > 0 || tries == 1 {
			break
		}
		anew, err := a.frame(p, at, direction, source, destination)
		if err != nil {
			return bocage.Trace{}, err
		}
		if bytes.Equal(anew, frame) {
			break
		}
		frame = anew
	}
	t := bocage.Trace{Host: a.cfg.Host, Interface: at.Port.Interface, Direction: direction, Workload: at.Port.Workload,
		Frame: frame, Outcome: string(passage.Outcome), Target: linkName(passage.Target)}
	flowOf := dataplane.FlowOf
	if slices.ContainsFunc(a.dataplane.Wires(), func(w dataplane.Wire) bool { return at.Ifindex == w.Inside || at.Ifindex == w.Outside }) {
		flowOf = dataplane.FlowOnWire
	}
	if flow, ok := flowOf(frame); ok {
		flow.At = time.Now()
		t.Packet = &flow
	}
	t.Kernel = bocage.TraceDecision{Generation: passage.Generation, Source: passage.Source, Destination: passage.Destination,
		Verdict: passage.Verdict, Would: passage.Would, Reason: passage.Reason, Decision: passage.Decision}
	if ruleset != nil && ruleset.Generation == passage.Generation {
		if t.Names, err = a.namesOf(ruleset, passage, t); err != nil {
			return bocage.Trace{}, err
		}
		if d, ok := ruleset.Decision(passage.Decision); ok {
			t.Kernel.By = d.By
		}
		t.Model, t.Disagreement = model(ruleset, passage, t)
	}
	t.Steps = steps(ruleset, passage, t)
	return t, nil
}

// ends finds the addresses that the description names.
func (a *agentProcess) ends(ruleset *bocage.Ruleset, p bocage.TracePacket) (source, destination netip.Addr, err error) {
	if len(p.Frame) > 0 {
		flow, _ := dataplane.FlowOf(p.Frame)
		return flow.Source, flow.Destination, nil
	}
	source, isAddress := bocage.End(p.Source)
	destination, also := bocage.End(p.Destination)
	var faults []error
	find := func(name string, other netip.Addr) netip.Addr {
		address, err := addressOf(ruleset, name, p.Protocol, other)
		faults = append(faults, err)
		return address
	}
	if !isAddress {
		source = find(p.Source, destination)
	}
	if name, wrong := bocage.ParseDomainName(p.Destination); !also && wrong == nil {
		address, err := a.learnedOf(ruleset, source, name)
		destination, also, faults = address, true, append(faults, err)
	}
	if !also {
		destination = find(p.Destination, source)
	}
	return source, destination, errors.Join(faults...)
}

// learnedOf is an address that a source was told a name has, or another name below
// the same pattern: the kernel keeps no more than the patterns.
func (a *agentProcess) learnedOf(ruleset *bocage.Ruleset, source netip.Addr, name bocage.DomainName) (netip.Addr, error) {
	if ruleset == nil {
		return netip.Addr{}, fmt.Errorf("%s: this host has no ruleset yet that would have names: say addresses", name)
	}
	learned, err := a.dataplane.Learned(ruleset)
	if err != nil {
		return netip.Addr{}, err
	}
	identity := ruleset.Lookup(source).Identity
	for _, l := range learned {
		if l.Identity == identity && l.Name.Matches(name) && l.Address.Is4() == source.Is4() {
			return l.Address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: the DNS told %s no address of it that still counts, in answers that its enforcement point read: have it ask again, or say an address", name, source)
}

// namesOf lists by which names the source of the packet's flow knows where it goes:
// of a flow that is there already, also those that are over.
func (a *agentProcess) namesOf(ruleset *bocage.Ruleset, passage dataplane.Passage, t bocage.Trace) ([]bocage.TraceName, error) {
	identity := passage.Port.Port.Identity
	if t.Packet == nil || (t.Direction == bocage.DirectionFrom) == passage.Reversed {
		return nil, nil // its source is not behind this point
	}
	address := t.Packet.Destination
	if passage.Reversed {
		address = t.Packet.Source
	}
	if identity == bocage.IdentityUnknown { // of a wire
		identity = passage.Source
	}
	learned, err := a.dataplane.NamesOf(ruleset, identity, address)
	if err != nil {
		return nil, err
	}
	lives := passage.Tracked == dataplane.TrackedHit || passage.Tracked == dataplane.TrackedStale
	var names []bocage.TraceName
	for _, l := range learned {
		if lives || l.Until.After(time.Now()) {
			names = append(names, bocage.TraceName{Name: l.Name, Until: l.Until})
		}
	}
	return names, nil
}

// addressOf is a workload's address, of the family that the other end has.
func addressOf(ruleset *bocage.Ruleset, name string, protocol bocage.Protocol, other netip.Addr) (netip.Addr, error) {
	if ruleset == nil {
		return netip.Addr{}, fmt.Errorf("%s: this host has no ruleset yet that would name a workload: say addresses", name)
	}
	six := protocol == bocage.ProtocolICMPv6 || other.IsValid() && other.Is6()
	var found netip.Addr
	for _, peer := range ruleset.Peers {
		address := peer.Prefix.Addr()
		if peer.Workload == name && peer.Prefix.IsSingleIP() && (!found.IsValid() || address.Is6() == six && found.Is6() != six) {
			found = address
		}
	}
	if !found.IsValid() {
		return found, fmt.Errorf("%s: the ruleset of this host knows no such workload: say namespace/name of one, or an address", name)
	}
	return found, nil
}

// point finds the enforcement point that is asked about.
func (a *agentProcess) point(p bocage.TracePacket, source, destination netip.Addr) (dataplane.Attachment, bocage.Direction, error) {
	attached := a.dataplane.Attached()
	for _, w := range a.dataplane.Wires() { // a packet comes in at one end or the other
		if end := linkName(w.Inside); p.Interface == end {
			return dataplane.Attachment{Ifindex: w.Inside, Port: bocage.Port{Interface: end}}, bocage.DirectionFrom, nil
		}
		if end := linkName(w.Outside); p.Interface == end {
			return dataplane.Attachment{Ifindex: w.Outside, Port: bocage.Port{Interface: end}}, bocage.DirectionTo, nil
		}
	}
	at := func(end netip.Addr) int {
		return slices.IndexFunc(attached, func(at dataplane.Attachment) bool {
			return (p.Interface == "" || at.Port.Interface == p.Interface) && slices.Contains(at.Port.Addresses, end)
		})
	}
	from, to := at(source), at(destination)
	asked := func(d bocage.Direction) bool { return p.Direction == nil || *p.Direction == d }
	switch named := slices.IndexFunc(attached, func(at dataplane.Attachment) bool { return at.Port.Interface == p.Interface }); {
	case p.Interface != "" && named < 0:
		return dataplane.Attachment{}, 0, fmt.Errorf("%s is no enforcement point of this host: bocage doctor agent tells which there should be", p.Interface)
	case p.Interface != "" && p.Direction != nil:
		return attached[named], *p.Direction, nil
	case from >= 0 && asked(bocage.DirectionFrom):
		return attached[from], bocage.DirectionFrom, nil
	case to >= 0 && asked(bocage.DirectionTo):
		return attached[to], bocage.DirectionTo, nil
	case p.Interface != "":
		return dataplane.Attachment{}, 0, fmt.Errorf("neither %s nor %s is behind %s: say --direction", source, destination, p.Interface)
	}
	return dataplane.Attachment{}, 0, fmt.Errorf("no enforcement point of this host has %s or %s: say --interface and --direction", source, destination)
}

// frame builds what the description means at a point: where it does not say, with
// the hardware addresses of the point's two sides.
func (a *agentProcess) frame(p bocage.TracePacket, at dataplane.Attachment, direction bocage.Direction, source, destination netip.Addr) ([]byte, error) {
	workload, own, err := a.dataplane.HardwareAddresses(at.Ifindex)
	if err != nil {
		return nil, err
	}
	if isZero(workload) { // nobody's is known, and no frame is without one
		workload = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	}
	e := dataplane.Ends{Source: source, Destination: destination, SourceMAC: workload, DestinationMAC: own}
	if direction == bocage.DirectionTo {
		e.SourceMAC, e.DestinationMAC = own, workload
	}
	for text, into := range map[*string]*net.HardwareAddr{&p.SourceMAC: &e.SourceMAC, &p.DestinationMAC: &e.DestinationMAC} {
		if *text == "" {
			continue
		}
		if *into, err = net.ParseMAC(*text); err != nil {
			return nil, err
		}
	}
	return dataplane.Frame(p, e)
}

// model asks Ruleset.DecideNamed about the flow of the packet, and says in what the
// programs differ from it where they went by policy.
func model(ruleset *bocage.Ruleset, passage dataplane.Passage, t bocage.Trace) (*bocage.TraceDecision, string) {
	if t.Packet == nil {
		return nil, ""
	}
	flow := *t.Packet
	local := &flow.Source
	if t.Direction == bocage.DirectionTo {
		local = &flow.Destination
	}
	port := passage.Port.Port
	if ruleset.Lookup(*local).Identity == bocage.IdentityWorld && port.Identity != bocage.IdentityUnknown && len(port.Addresses) > 0 {
		*local = port.Addresses[0] // the point vouches for an address that no peer has
	}
	if passage.Reversed {
		flow.Source, flow.Destination, flow.SourcePort, flow.DestinationPort = flow.Destination, flow.Source, flow.DestinationPort, flow.SourcePort
	}
	var names []bocage.DomainName
	for _, n := range t.Names {
		names = append(names, n.Name)
	}
	verdict, reason := ruleset.DecideNamed(flow, names...)
	m := &bocage.TraceDecision{Generation: ruleset.Generation, Source: ruleset.Lookup(flow.Source).Identity, Destination: ruleset.Lookup(flow.Destination).Identity,
		Verdict: verdict, Would: reason.Would, Reason: reason.Code, Decision: reason.Decision}
	if d, ok := ruleset.Decision(reason.Decision); ok {
		m.By = d.By
	}
	k := t.Kernel
	if k.Reason >= bocage.ReasonSpoofed || k.Reason == bocage.ReasonNoRuleset {
		return m, "" // the point decided by itself
	}
	return m, differences(k, *m)
}

func differences(kernel, model bocage.TraceDecision) string {
	switch {
	case kernel.Decision != model.Decision:
		return fmt.Sprintf("the programs go by decision %s, the model by %s", kernel.Decision, model.Decision)
	case kernel.Reason != model.Reason:
		return fmt.Sprintf("the programs' reason is %s, the model's %s", kernel.Reason, model.Reason)
	case !sameVerdict(kernel.Verdict, model.Verdict):
		return fmt.Sprintf("the programs %s, the model %s", kernel.Verdict, model.Verdict)
	case !sameVerdict(kernel.Would, model.Would):
		return fmt.Sprintf("the programs would %s, the model would %s", kernel.Would, model.Would)
	}
	return ""
}

// sameVerdict: where a refusal cannot be answered, or meet a decoy, it is silent.
func sameVerdict(kernel, model bocage.Verdict) bool {
	return kernel == model || kernel == bocage.VerdictDrop && (model == bocage.VerdictReject || model == bocage.VerdictDecoy)
}

// steps tells the packet's way in the order in which the programs take it.
func steps(ruleset *bocage.Ruleset, p dataplane.Passage, t bocage.Trace) []bocage.TraceStep {
	var all []bocage.TraceStep
	step := func(name, format string, args ...any) {
		all = append(all, bocage.TraceStep{Name: name, Said: fmt.Sprintf(format, args...)})
	}
	port := p.Port.Port
	if port.Identity == bocage.IdentityUnknown {
		step("port", "%s: nothing vouches for it", port.Interface)
	} else {
		step("port", "%s of %s, identity %d, group %d", port.Interface, port.Workload, port.Identity, port.Group)
	}
	if p.Generation == 0 {
		step("ruleset", "none is in force: everything passes")
	} else {
		step("ruleset", "generation %d", p.Generation)
	}
	switch p.Admitted {
	case dataplane.AdmittedOn:
		step("admit", "its addresses are the port's, or go to the port")
	case dataplane.AdmittedControl:
		step("admit", "it is what links need to work")
	case dataplane.AdmittedSpoofed:
		step("admit", "its source is not the port's")
	case dataplane.AdmittedAside:
		step("admit", "it is not addressed to this workload")
	case dataplane.AdmittedUnknown:
		step("admit", "it is what links need, and nobody vouches for whom it comes from")
	default:
		step("read", "its headers cannot be what they claim")
	}
	switch p.Tracked {
	case dataplane.TrackedMiss:
		step("flow", "none is known: it is judged")
	case dataplane.TrackedStale:
		step("flow", "known, and judged by another ruleset or for the other end only: it is judged again")
	case dataplane.TrackedHit:
		step("flow", "known, and its verdict holds")
	case dataplane.TrackedAgainst:
		step("flow", "a flow lives that goes the other way: this cannot open it")
	}
	if p.Reversed {
		step("flow", "it goes against the direction in which its flow was opened")
	}
	if p.Judged {
		step("source", "%s", whoText(ruleset, p.Source, p.SourceGroup, p.SourceEnforces))
		step("destination", "%s", whoText(ruleset, p.Destination, p.DestinationGroup, p.DestinationEnforces))
		switch {
		case p.Refused:
			step("refused set", "an end of it is cut off")
		case p.Shape > 0:
			step("rule", "one of kind %d hit, of those looked up in turn from the most specific on", p.Shape)
		default:
			step("rule", "none: the default decides")
		}
		for _, n := range t.Names {
			step("name", "the source was told that the destination is %s, until %s", n.Name, n.Until.UTC().Format(time.RFC3339))
		}
		if p.Named {
			step("name", "one of these names is consumed by a contract where merely nobody allows the address, or accepted by a ClusterNetworkPolicy before Kubernetes refuses it")
		}
		if p.Ended > 0 {
			step("rule", "%d decisions had ended and gave way to the next", p.Ended)
		}
	}
	switch {
	case p.Excess:
		step("rate", "new flows between these two are counted, and this one comes before its turn")
	case p.Limited:
		step("rate", "new flows between these two are counted, and this one's turn has come")
	}
	step("decision", "%s", t.Kernel)
	if p.Differs {
		step("candidate", "the candidate in shadow decides its reach otherwise")
	}
	outcome := t.Outcome
	if t.Target != "" {
		outcome += " by " + t.Target
	}
	step("outcome", "%s", outcome)
	return all
}

func whoText(ruleset *bocage.Ruleset, identity bocage.Identity, group bocage.Group, enforces bool) string {
	name := ""
	if ruleset != nil {
		i := slices.IndexFunc(ruleset.Peers, func(p bocage.Peer) bool { return p.Identity == identity && p.Workload != "" })
		if i >= 0 {
			name = " (" + ruleset.Peers[i].Workload + ")"
		}
	}
	mode := "merely observed"
	if enforces {
		mode = "enforced"
	}
	return fmt.Sprintf("identity %d%s, group %d, %s", identity, name, group, mode)
}

func linkName(ifindex uint32) string {
	if ifindex == 0 {
		return ""
	}
	i, err := net.InterfaceByIndex(int(ifindex))
	if err != nil {
		return fmt.Sprintf("link %d", ifindex)
	}
	return i.Name
}

func isZero(mac net.HardwareAddr) bool {
	return !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 })
}
