package dataplane

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Wire is an inline enforcement point: frames pass between two interfaces and
// nowhere else, so the host's own stack neither sees nor sends any on them.
// Residents are the workloads at the inside; who else sends from there has no
// identity.
//
// While no process runs the wire carries on; what takes it off (DetachWire,
// Remove) cuts the cable.
type Wire struct {
	Name            string
	Inside, Outside uint32 // indexes of the interfaces
	// Closed refuses who has no identity at the inside: somebody there enforces.
	Closed bool
	// Drivers has the interfaces' drivers forward frames of known flows, and drop what
	// is refused without an answer, before the kernel's stack sees them; the rest is
	// judged there as on any wire. Both must support XDP, and be nobody else's.
	Drivers   bool
	Residents []bocage.Port
}

// Further flags of a port (see abi.h).
const (
	portWire     = 16
	portOutside  = 32
	portLoosened = 64
)

// AttachWire makes a pair of interfaces a wire, or changes who is at its inside.
// Both must have one MTU and no address.
func (d *Dataplane) AttachWire(w Wire) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.attachWire(w); err != nil {
		return fmt.Errorf("attach wire %s (interfaces %d and %d): %w", w.Name, w.Inside, w.Outside, err)
	}
	return nil
}

func (d *Dataplane) attachWire(w Wire) error {
	was, known := d.wires[w.Inside]
	if known && was.Outside != w.Outside {
		if err := d.detachWire(was); err != nil {
			return err
		}
		known = false
	}
	if err := d.checkWire(w, known); err != nil {
		return err
	}
	if err := errors.Join(d.writeWire(w), d.rewireNow()); err != nil {
		return err
	}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		for _, program := range []string{programAcross, programHost} { // nothing of the host's own before frames are taken
			if d.waits(ifindex, program) {
				continue
			}
			if err := d.pins.attach(d.objects, ifindex, program); err != nil {
				if !known {
					err = errors.Join(err, d.detachWire(w))
				}
				return err
			}
		}
	}
	if known && (was.Closed != w.Closed || !slices.Equal(identitiesOf(was), identitiesOf(w))) {
		// What passed before somebody vouched for it, or was refused, is judged again.
		if err := d.judgeAnew(); err != nil {
			return err
		}
	}
	d.departed = true
	w.Residents = slices.Clone(w.Residents)
	wanted := w.Drivers
	w.Drivers = known && was.Drivers // until it is done
	d.wires[w.Inside] = w
	if err := d.useDrivers(w, wanted); err != nil {
		return err
	}
	if !known {
		d.log.Info("wire attached", "wire", w.Name, "inside", w.Inside, "outside", w.Outside, "residents", len(w.Residents))
	}
	return nil
}

// resident is an address inside, and who has it.
type resident struct {
	address  netip.Addr
	identity bocage.Identity
}

// identitiesOf says who has which address at a wire's inside, in order.
func identitiesOf(w Wire) []resident {
	var all []resident
	for _, p := range w.Residents {
		for _, a := range p.Addresses {
			all = append(all, resident{a.Unmap().WithZone(""), p.Identity})
		}
	}
	slices.SortFunc(all, func(a, b resident) int {
		return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.identity, b.identity))
	})
	return all
}

// checkWire refuses what would be no wire. Of one that stands already only its
// interfaces' use is looked at.
func (d *Dataplane) checkWire(w Wire, known bool) error {
	if w.Inside == 0 || w.Outside == 0 || w.Inside == w.Outside {
		return errors.New("a wire needs two interfaces")
	}
	for inside, other := range d.wires {
		ends := []uint32{other.Inside, other.Outside}
		if inside != w.Inside && (slices.Contains(ends, w.Inside) || slices.Contains(ends, w.Outside)) {
			return fmt.Errorf("wire %s has one of its interfaces", other.Name)
		}
	}
	var mtu [2]int
	for i, ifindex := range []uint32{w.Inside, w.Outside} {
		if _, is := d.ports[ifindex]; is {
			return fmt.Errorf("interface %d is a workload's", ifindex)
		}
		l, err := linkAt(ifindex)
		if err != nil {
			return err
		}
		mtu[i] = l.Attrs().MTU
		if known {
			continue
		}
		if l.Attrs().MasterIndex != 0 {
			return fmt.Errorf("%s is part of a bridge or bond: take it out of it first", l.Attrs().Name)
		}
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("read addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addresses {
			if !a.IP.IsLinkLocalUnicast() {
				return fmt.Errorf("%s has the address %s, and on a wire the host has none: move it to another interface first", l.Attrs().Name, a.IPNet)
			}
		}
	}
	if mtu[0] != mtu[1] {
		return fmt.Errorf("the MTU inside is %d, outside %d: frames would get stuck; make them equal", mtu[0], mtu[1])
	}
	return nil
}

// writeWire writes the rows of both interfaces and of the residents, keeping what
// the kernel learned.
func (d *Dataplane) writeWire(w Wire) error {
	residents := make(map[bpf.KernelPortAddress]bpf.KernelResident)
	for _, p := range w.Residents {
		row := bpf.KernelResident{Identity: uint32(p.Identity), Group: uint32(p.Group)}
		if p.MAC != "" {
			mac, err := net.ParseMAC(p.MAC)
			if err != nil || len(mac) != 6 {
				return fmt.Errorf("MAC %q of %s is not six bytes in hexadecimal", p.MAC, p.Workload)
			}
			row.Mac, row.Flags = [6]byte(mac), portMACDeclared
		}
		for _, address := range p.Addresses {
			if !address.IsValid() {
				return fmt.Errorf("an address of %s is not valid", p.Workload)
			}
			residents[bpf.KernelPortAddress{Ifindex: w.Inside, Address: addressOf(address.Unmap().WithZone(""))}] = row
		}
	}
	for key, row := range residents {
		if err := d.objects.Residents.Put(key, row); err != nil {
			return fmt.Errorf("write resident: %w", err)
		}
	}
	flags := uint8(portWire)
	if w.Closed {
		flags |= portClosed
	}
	if err := errors.Join(d.writeSide(w.Inside, w.Outside, flags), d.writeSide(w.Outside, w.Inside, flags|portOutside)); err != nil {
		return err
	}
	return clearRows(d.objects.Residents, func(k bpf.KernelPortAddress) bool {
		_, is := residents[k]
		return k.Ifindex == w.Inside && !is
	})
}

func (d *Dataplane) writeSide(at, across uint32, flags uint8) error {
	var row bpf.KernelPort
	err := d.objects.Ports.Lookup(at, &row)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read port: %w", err)
	}
	fresh := err != nil
	row.Across, row.Flags = across, flags|row.Flags&portLoosened
	if err := d.describe(at, &row); err != nil {
		return err
	}
	if fresh {
		row.Attached = uint64(readClock().ns)
		d.takeSettings(at, &row)
	}
	l, err := linkAt(at)
	if err != nil {
		return err
	}
	loosens := l.Attrs().Promisc == 0
	if loosens { // written down first, so that it is taken back whatever happens in between
		row.Flags |= portLoosened
	}
	if err := d.objects.Ports.Put(at, row); err != nil {
		return fmt.Errorf("write port: %w", err)
	}
	if !loosens {
		return nil
	}
	if err := netlink.SetPromiscOn(l); err != nil {
		return fmt.Errorf("have %s take frames to any MAC: %w", l.Attrs().Name, err)
	}
	return nil
}

// takeSettings takes over from other layouts what is set at an interface because it is
// a wire's: it goes with this one now.
func (d *Dataplane) takeSettings(ifindex uint32, row *bpf.KernelPort) {
	dirs, err := d.pins.foreignDirs()
	if err != nil {
		d.log.Warn("what another layout set at an interface is not known", "ifindex", ifindex, "error", err)
		return
	}
	for _, dir := range dirs {
		ports, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", "ports"), nil)
		if err != nil {
			continue // it has none
		}
		var theirs bpf.KernelPort
		if ports.ValueSize() == uint32(binary.Size(theirs)) && ports.Lookup(ifindex, &theirs) == nil &&
			theirs.Flags&portWire != 0 && theirs.HostMac == row.HostMac {
			row.Flags |= theirs.Flags & portLoosened
			row.Driver |= theirs.Driver & (driverBared | driverBaredS)
		}
		ports.Close()
	}
}

// DetachWire takes a wire off, by the index of its interface inside; then nothing
// passes between its interfaces. Nil if there is none.
func (d *Dataplane) DetachWire(inside uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.wires[inside]
	if !ok {
		return nil
	}
	if err := d.detachWire(w); err != nil {
		return fmt.Errorf("detach wire %s: %w", w.Name, err)
	}
	d.log.Info("wire detached", "wire", w.Name)
	return nil
}

func (d *Dataplane) detachWire(w Wire) error {
	if err := d.leaveDrivers(w); err != nil {
		return err
	}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		for _, program := range []string{programAcross, programHost} {
			if err := d.pins.detach(ifindex, program); err != nil {
				return err
			}
			for _, m := range d.takeMoves(ifindex, program) {
				if err := cutLink(m.path); err != nil {
					return err
				}
			}
		}
		var row bpf.KernelPort
		if d.objects.Ports.Lookup(ifindex, &row) == nil {
			if err := tighten(ifindex, row); err != nil {
				return err
			}
		}
		if err := d.objects.Ports.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete port: %w", err)
		}
	}
	d.departed = true
	delete(d.wires, w.Inside)
	err := clearRows(d.objects.Residents, func(k bpf.KernelPortAddress) bool { return k.Ifindex == w.Inside })
	if err := errors.Join(err, d.rewireNow()); err != nil {
		return err
	}
	return d.endFlowsOf(w.Inside)
}

// restoreLinks takes back what was set at the interfaces of a layout's wires.
func restoreLinks(dir string) error {
	ports, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", "ports"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read wires: %w", err)
	}
	defer ports.Close()
	if ports.ValueSize() != uint32(binary.Size(bpf.KernelPort{})) {
		return nil // of a version that had other rows
	}
	var faults []error
	for ifindex, err := range keysIn[uint32](ports) {
		var row bpf.KernelPort
		if err != nil || ports.Lookup(ifindex, &row) != nil || row.Flags&portWire == 0 {
			faults = append(faults, err)
			continue
		}
		faults = append(faults, restore(ifindex, row))
	}
	return errors.Join(faults...)
}

// restore takes back what was set at an interface because it was a wire's, if it is
// still that one: another may bear its number by now.
func restore(ifindex uint32, row bpf.KernelPort) error {
	l, err := linkAt(ifindex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.HostMac == [6]byte{} || string(l.Attrs().HardwareAddr) != string(row.HostMac[:]) {
		return nil
	}
	return errors.Join(tighten(ifindex, row), stripTags(ifindex, row.Driver))
}

// restoreGone takes back what was set at interfaces that have no program of a wire's: an
// earlier process was killed between both, on its way there or back.
func (d *Dataplane) restoreGone(gone func(uint32) bool) error {
	for ifindex, err := range keysIn[uint32](d.objects.Ports) {
		if err != nil {
			return err
		}
		var row bpf.KernelPort
		if !gone(ifindex) || d.objects.Ports.Lookup(ifindex, &row) != nil || row.Flags&portWire == 0 {
			continue
		}
		if err := restore(ifindex, row); err != nil {
			d.log.Warn("what was set at an interface that is no wire's any more stays set", "interface", nameOf(ifindex), "error", err)
		}
	}
	return nil
}

// tighten has an interface leave frames to other MACs again where a wire changed that,
// if the interface is still there.
func tighten(ifindex uint32, row bpf.KernelPort) error {
	if row.Flags&portLoosened == 0 {
		return nil
	}
	l, err := linkAt(ifindex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.SetPromiscOff(l); err != nil && !errors.Is(err, unix.ENODEV) { // it may go this moment
		return fmt.Errorf("have %s leave frames to other MACs: %w", l.Attrs().Name, err)
	}
	return nil
}

// Wires lists the wires by interface, those of an earlier process included. Of
// these only what the kernel knows is filled in, which has no names.
func (d *Dataplane) Wires() []Wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]Wire, 0, len(d.wires))
	for _, w := range d.wires {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Wire) int { return cmp.Compare(a.Inside, b.Inside) })
	return all
}

// recallWires reads back the wires that an earlier process made.
func (d *Dataplane) recallWires() error {
	residents := make(map[uint32][]bocage.Port)
	for key, err := range keysIn[bpf.KernelPortAddress](d.objects.Residents) {
		if err != nil {
			return err
		}
		var row bpf.KernelResident
		if err := d.objects.Residents.Lookup(key, &row); err != nil {
			return fmt.Errorf("read resident: %w", err)
		}
		residents[key.Ifindex] = withResident(residents[key.Ifindex], row, key)
	}
	for ifindex, err := range keysIn[uint32](d.objects.Ports) {
		if err != nil {
			return err
		}
		var row bpf.KernelPort
		if err := d.objects.Ports.Lookup(ifindex, &row); err != nil {
			return fmt.Errorf("read port: %w", err)
		}
		if row.Flags&portWire == 0 || row.Flags&portOutside != 0 {
			continue
		}
		w := Wire{Inside: ifindex, Outside: row.Across, Closed: row.Flags&portClosed != 0, Residents: residents[ifindex]}
		_, err := os.Stat(filepath.Join(d.pins.linksDir(), linkName(ifindex, programDriver)))
		w.Drivers = err == nil
		slices.SortFunc(w.Residents, func(a, b bocage.Port) int { return cmp.Compare(a.Identity, b.Identity) })
		d.wires[w.Inside] = w
	}
	return nil
}

func withResident(ports []bocage.Port, row bpf.KernelResident, key bpf.KernelPortAddress) []bocage.Port {
	i := slices.IndexFunc(ports, func(p bocage.Port) bool { return p.Identity == bocage.Identity(row.Identity) })
	if i < 0 {
		port := bocage.Port{Identity: bocage.Identity(row.Identity), Group: bocage.Group(row.Group)}
		if row.Flags&portMACDeclared != 0 {
			port.MAC = net.HardwareAddr(row.Mac[:]).String()
		}
		i, ports = len(ports), append(ports, port)
	}
	ports[i].Addresses = append(ports[i].Addresses, addrOf(key.Address))
	return ports
}

// isWired says whether an interface is an end of a wire.
func (d *Dataplane) isWired(ifindex uint32) bool {
	for _, w := range d.wires {
		if w.Inside == ifindex || w.Outside == ifindex {
			return true
		}
	}
	return false
}
