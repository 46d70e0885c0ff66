package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Flags of a port (see abi.h).
const (
	portMACDeclared   = 1
	portMACLearned    = 2
	portMoreAddresses = 4
	portPeer          = 128
	portClosed        = 8
)

// Attach makes an interface an enforcement point, or changes who is behind one.
// The row that says who comes first, so the first packet meets it.
func (d *Dataplane) Attach(a Attachment) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.attach(a); err != nil {
		return fmt.Errorf("attach port %s (%s, interface %d): %w", a.Port.Interface, a.Port.Workload, a.Ifindex, err)
	}
	return nil
}

func (d *Dataplane) attach(a Attachment) error {
	if err := d.writePort(a); err != nil {
		return err
	}
	for _, program := range []string{programFrom, programTo} {
		if d.waits(a.Ifindex, program) {
			continue
		}
		if err := d.pins.attach(d.objects, a.Ifindex, program); err != nil {
			if _, known := d.ports[a.Ifindex]; !known {
				err = errors.Join(err, d.detach(a.Ifindex))
			}
			return err
		}
	}
	a.Port.Addresses = slices.Clone(a.Port.Addresses)
	was, known := d.ports[a.Ifindex]
	if known && (was.Port.Identity != a.Port.Identity || was.Closed != a.Closed) {
		// What passed before somebody vouched for it, or was refused, is judged again.
		if err := d.judgeAnew(); err != nil {
			return err
		}
	}
	d.ports[a.Ifindex] = a
	d.departed = d.departed || known && was.Port.Identity != a.Port.Identity
	if err := d.share(); err != nil {
		return err
	}
	if known && was.Port.Workload == a.Port.Workload && was.Port.Identity == a.Port.Identity {
		return nil // every new ruleset comes by here
	}
	d.log.Info("attached", "interface", a.Port.Interface, "ifindex", a.Ifindex, "workload", a.Port.Workload,
		"identity", uint32(a.Port.Identity))
	return nil
}

// judgeAnew has every flow judged again at its next packet.
func (d *Dataplane) judgeAnew() error {
	f, err := d.readForce()
	if err != nil || f.header == nil {
		return err
	}
	return d.rejudge(f)
}

// Gone says whether the interface of an enforcement point has gone: another may
// bear its number by now, and nothing stands in front of that.
func (d *Dataplane) Gone(ifindex uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, attached := d.ports[ifindex]
	return attached && !d.pins.alive(ifindex, programFrom)
}

// writePort writes the row of a port and its further addresses, keeping what the
// kernel learned of it.
func (d *Dataplane) writePort(a Attachment) error {
	var row bpf.KernelPort
	err := d.objects.Ports.Lookup(a.Ifindex, &row)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read port: %w", err)
	}
	before := row
	if err != nil {
		row.Attached = uint64(readClock().ns)
	}
	if row.Identity != uint32(a.Port.Identity) {
		row.Flags = 0 // another workload may well have another MAC
	}
	declared := false
	row.Identity, row.Group = uint32(a.Port.Identity), uint32(a.Port.Group)
	row.Flags &= portMACLearned
	if a.Closed {
		row.Flags |= portClosed
	}
	if err := d.describe(a.Ifindex, &row); err != nil {
		return err
	}
	if a.Port.MAC != "" {
		mac, err := net.ParseMAC(a.Port.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("MAC %q is not six bytes in hexadecimal", a.Port.MAC)
		}
		row.Mac, row.Flags = [6]byte(mac), row.Flags&^portMACLearned|portMACDeclared
		declared = before.Mac != row.Mac || before.Flags&portMACDeclared == 0
	}
	row.Address4, row.Address6 = bpf.KernelAddress{}, bpf.KernelAddress{}
	more := make(map[bpf.KernelPortAddress]bool)
	for _, address := range a.Port.Addresses {
		if !address.IsValid() {
			return errors.New("an address is not valid")
		}
		address = address.Unmap().WithZone("")
		switch {
		case address.Is4() && row.Address4 == bpf.KernelAddress{}:
			row.Address4 = addressOf(address)
		case address.Is6() && row.Address6 == bpf.KernelAddress{}:
			row.Address6 = addressOf(address)
		default:
			more[bpf.KernelPortAddress{Ifindex: a.Ifindex, Address: addressOf(address)}] = true
			row.Flags |= portMoreAddresses
		}
	}
	for key := range more {
		if err := d.objects.PortAddresses.Put(key, uint32(1)); err != nil {
			return fmt.Errorf("write address of port: %w", err)
		}
	}
	if err := d.objects.Ports.Put(a.Ifindex, row); err != nil {
		return fmt.Errorf("write port: %w", err)
	}
	if declared { // and nobody learns it any more
		if err := d.unlearn(a.Ifindex, row.Mac); err != nil {
			return err
		}
	}
	cleared := false
	err = clearRows(d.objects.PortAddresses, func(k bpf.KernelPortAddress) bool {
		gone := k.Ifindex == a.Ifindex && !more[k]
		cleared = cleared || gone
		return gone
	})
	if err == nil && !cleared && before == row {
		return nil
	}
	return errors.Join(err, d.rewireNow())
}

// unlearn has ports forget a MAC that they sent by and that is declared another's now,
// also those that were just about to learn it as the declaration was written.
func (d *Dataplane) unlearn(owner uint32, mac [6]byte) error {
	if err := d.await(); err != nil {
		return err
	}
	for ifindex, err := range keysIn[uint32](d.objects.Ports) {
		var row bpf.KernelPort
		if err != nil {
			return fmt.Errorf("list ports: %w", err)
		}
		if ifindex == owner || d.objects.Ports.Lookup(ifindex, &row) != nil || row.Flags&portMACLearned == 0 || row.Mac != mac {
			continue
		}
		row.Flags &^= portMACLearned
		if err := d.objects.Ports.Put(ifindex, row); err != nil {
			return fmt.Errorf("forget a MAC that is another's: %w", err)
		}
	}
	return nil
}

// readPort reads back what the kernel knows of a port.
func (d *Dataplane) readPort(ifindex uint32) (port bocage.Port, closed bool, err error) {
	var row bpf.KernelPort
	if err := d.objects.Ports.Lookup(ifindex, &row); err != nil {
		return bocage.Port{}, false, err
	}
	port = bocage.Port{Identity: bocage.Identity(row.Identity), Group: bocage.Group(row.Group)}
	l, err := linkAt(ifindex)
	if err == nil {
		port.Interface = l.Attrs().Name
	} else if !errors.Is(err, fs.ErrNotExist) {
		return port, false, err
	}
	if row.Flags&portMACDeclared != 0 {
		port.MAC = net.HardwareAddr(row.Mac[:]).String()
	}
	for _, a := range []netip.Addr{addrOf(row.Address4), addrOf(row.Address6)} {
		if a.IsValid() {
			port.Addresses = append(port.Addresses, a)
		}
	}
	for key, err := range keysIn[bpf.KernelPortAddress](d.objects.PortAddresses) {
		if err != nil {
			return port, false, err
		}
		if key.Ifindex == ifindex {
			port.Addresses = append(port.Addresses, addrOf(key.Address))
		}
	}
	return port, row.Flags&portClosed != 0, nil
}

// Detach ends an enforcement point; its flows end with it. Nil if it is none.
func (d *Dataplane) Detach(ifindex uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := d.ports[ifindex].Port.Interface
	if err := d.detach(ifindex); err != nil {
		return fmt.Errorf("detach interface %d: %w", ifindex, err)
	}
	d.log.Info("detached", "interface", name, "ifindex", ifindex)
	return nil
}

func (d *Dataplane) detach(ifindex uint32) error {
	for _, program := range []string{programFrom, programTo} {
		if err := d.pins.detach(ifindex, program); err != nil {
			return err
		}
		for _, m := range d.takeMoves(ifindex, program) {
			if err := cutLink(m.path); err != nil {
				return err
			}
		}
	}
	d.departed = true
	delete(d.ports, ifindex)
	if err := d.objects.Ports.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete port: %w", err)
	}
	err := clearRows(d.objects.PortAddresses, func(k bpf.KernelPortAddress) bool { return k.Ifindex == ifindex })
	if err != nil {
		return err
	}
	if err := d.rewireNow(); err != nil {
		return err
	}
	if err := d.endFlowsOf(ifindex); err != nil {
		return err
	}
	return d.share()
}

// SetInspection says where the engine's links are and whether it is up. The
// zero Inspection takes steering off.
func (d *Dataplane) SetInspection(i Inspection) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.steering
	next.Outside, next.Inside, next.Up = i.Outside, i.Inside, number(i.Up && i.Outside != 0 && i.Inside != 0)
	if err := d.setSteering(next); err != nil {
		return fmt.Errorf("set inspection: %w", err)
	}
	return nil
}

// SetDecoy says where the decoys are.
func (d *Dataplane) SetDecoy(p DecoyPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.steering
	next.Decoy, next.DecoyMac = p.Ifindex, [6]byte{}
	if p.Ifindex != 0 {
		if len(p.MAC) != 6 {
			return fmt.Errorf("set decoy: MAC %q is not six bytes", p.MAC)
		}
		next.DecoyMac = [6]byte(p.MAC)
	}
	if err := d.setSteering(next); err != nil {
		return fmt.Errorf("set decoy: %w", err)
	}
	return nil
}

// setSteering attaches what is new before packets go there, and detaches what
// is old when none does any more.
func (d *Dataplane) setSteering(next bpf.KernelSteering) error {
	type exit struct {
		ifindex uint32
		program string
	}
	exits := func(s bpf.KernelSteering) []exit {
		return []exit{{s.Outside, programOutside}, {s.Inside, programInside}, {s.Decoy, programDecoy}}
	}
	wanted := exits(next)
	for _, e := range wanted {
		if e.ifindex == 0 || d.waits(e.ifindex, e.program) {
			continue
		}
		if err := d.pins.attach(d.objects, e.ifindex, e.program); err != nil {
			return err
		}
	}
	if err := d.objects.Steering.Put(uint32(0), next); err != nil {
		return fmt.Errorf("write steering: %w", err)
	}
	before := exits(d.steering)
	d.steering = next
	if err := d.barrier.wait(); err != nil {
		return err
	}
	for _, e := range before {
		if e.ifindex == 0 || slices.Contains(wanted, e) {
			continue
		}
		if err := d.pins.detach(e.ifindex, e.program); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// waits says whether a link of another layout is in place and no ruleset is in
// force here yet, or a lower one than there: then its program goes on until there is
// one, so that nothing goes unjudged between, nor by what is not in force any more.
func (d *Dataplane) waits(ifindex uint32, program string) bool {
	waiting := slices.ContainsFunc(d.moves, func(m move) bool { return m.ifindex == ifindex && m.program == program })
	if !waiting {
		return false
	}
	if f, err := d.readForce(); err == nil && (f.header == nil || d.ahead(f)) {
		return true
	}
	if !d.inherited {
		d.inherited = true
		d.inheritFlows()
	}
	for _, m := range d.takeMoves(ifindex, program) {
		if err := d.pins.adopt(d.objects, m); err != nil {
			d.log.Warn("link of another layout not moved", "path", m.path, "error", err)
		}
	}
	d.dropForeign()
	return false
}

func (d *Dataplane) takeMoves(ifindex uint32, program string) []move {
	var taken []move
	d.moves = slices.DeleteFunc(d.moves, func(m move) bool {
		if m.ifindex != ifindex || m.program != program {
			return false
		}
		taken = append(taken, m)
		return true
	})
	return taken
}

// moveLinks moves the links of ports that were attached while their program
// still went by another layout.
func (d *Dataplane) moveLinks() {
	for _, m := range slices.Clone(d.moves) {
		_, isPort := d.ports[m.ifindex]
		isPort = isPort || d.isWired(m.ifindex)
		s := d.steering
		if isPort || m.ifindex == s.Outside || m.ifindex == s.Inside || m.ifindex == s.Decoy {
			d.waits(m.ifindex, m.program)
		}
	}
}

// dropForeign removes other layouts once none of their links is in use.
func (d *Dataplane) dropForeign() {
	if len(d.moves) > 0 {
		return
	}
	d.inheritFlows() // those that began meanwhile
	if err := d.pins.removeForeign(); err != nil {
		d.log.Warn("state of another layout not removed", "error", err)
	}
}
