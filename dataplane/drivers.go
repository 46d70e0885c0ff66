package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// Wires whose interfaces' drivers forward (driver.c of the bpf package). The programs
// in the stack stay and judge what the drivers hand up, so a wire stands before its
// drivers take part, and after.

// What a port's row says of its driver (see wire.h of the bpf package).
const (
	driverForwards = 1
	driverPieces   = 2
	driverBared    = 4 // its tags of 802.1Q stay in frames because of us
	driverBaredS   = 8 // likewise those of 802.1ad
)

// strippers are what takes tags off frames before a driver's program sees them, by
// what a port's row says of them.
var strippers = [...]struct {
	feature string
	flag    uint8
}{{"rx-vlan-hw-parse", driverBared}, {"rx-vlan-stag-hw-parse", driverBaredS}}

// useDrivers has the drivers of a wire take part, or leave off. The wire is one that
// is attached; mu is held.
func (d *Dataplane) useDrivers(w Wire, wanted bool) error {
	if !wanted {
		if err := d.leaveDrivers(w); err != nil {
			return fmt.Errorf("forward by the stack: %w", err)
		}
		w.Drivers = false
		d.wires[w.Inside] = w
		return nil
	}
	if err := d.joinDrivers(w); err != nil {
		w.Drivers = false
		d.wires[w.Inside] = w
		return errors.Join(fmt.Errorf("forward by XDP (the stack does until then): %w", err), d.leaveDrivers(w))
	}
	if !w.Drivers {
		d.log.Info("drivers forward", "wire", w.Name)
	}
	w.Drivers = true
	d.wires[w.Inside] = w
	return nil
}

func (d *Dataplane) joinDrivers(w Wire) error {
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		if _, err := d.bareTags(ifindex); err != nil {
			return err
		}
		if d.waits(ifindex, programDriver) {
			continue
		}
		if err := d.pins.attach(d.objects, ifindex, programDriver); err != nil {
			return explainDriver(ifindex, err)
		}
	}
	for at, across := range map[uint32]uint32{w.Inside: w.Outside, w.Outside: w.Inside} {
		if err := d.objects.Crossings.Put(at, across); err != nil {
			return fmt.Errorf("write crossing: %w", err)
		}
	}
	lacking, err := d.describeDrivers(w)
	if err == nil && lacking != "" && d.lacksDrivers(w) {
		err = errors.New(lacking)
	}
	return err
}

// explainDriver says what to do about a driver's program that cannot be attached.
func explainDriver(ifindex uint32, err error) error {
	name := nameOf(ifindex)
	switch {
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return fmt.Errorf("another XDP program is on %s: take it off first (ip link show dev %s), or declare forwarding: stack: %w", name, name, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the driver of %s has no XDP as it is set up now: declare forwarding: stack: %w", name, err)
	case errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the driver of %s takes no XDP program with its MTU and settings (dmesg says why): %w", name, err)
	}
	return err
}

// bareTags has an interface leave tags in frames: a driver's program sees nothing else
// of a frame, and would forward what is in a VLAN as if it were in none. It reports
// whether that was necessary. What is to be set is written down first, so that it is
// taken back whatever happens in between.
func (d *Dataplane) bareTags(ifindex uint32) (did bool, err error) {
	var row bpf.KernelPort
	if err := d.objects.Ports.Lookup(ifindex, &row); err != nil {
		return false, fmt.Errorf("read port: %w", err)
	}
	name := nameOf(ifindex)
	for _, s := range strippers {
		on, err := host.HasFeature(name, s.feature)
		if err != nil {
			return did, fmt.Errorf("see whether %s leaves VLAN tags in frames: %w", name, err)
		}
		if !on {
			continue
		}
		row.Driver |= s.flag
		if err := d.objects.Ports.Put(ifindex, row); err != nil {
			return did, fmt.Errorf("write port: %w", err)
		}
		if _, err := host.SetFeature(name, s.feature, false); err != nil {
			return did, fmt.Errorf("have %s leave VLAN tags in frames: %w", name, err)
		}
		did = true
	}
	return did, nil
}

// repairDrivers looks whether the drivers of a wire see frames whole and can forward
// them. Where tags cannot be left in frames, the drivers hand everything up. mu is held.
func (d *Dataplane) repairDrivers(w Wire) (done []string, err error) {
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		if _, err := linkAt(ifindex); errors.Is(err, fs.ErrNotExist) {
			return nil, nil // and so has the wire
		}
	}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		did, err := d.bareTags(ifindex)
		if errors.Is(err, fs.ErrNotExist) {
			return done, nil // it went this moment
		}
		if err != nil {
			_, stopped := d.stopDrivers(w)
			return done, errors.Join(err, stopped)
		}
		if did {
			done = append(done, nameOf(ifindex)+" took VLAN tags off frames before its driver's program saw them")
		}
	}
	what, err := d.describeDrivers(w)
	if what != "" {
		done = append(done, what)
	}
	return done, err
}

// stopDrivers has the drivers of a wire hand everything up to the stack. It reports
// whether they did not before.
func (d *Dataplane) stopDrivers(w Wire) (did bool, err error) {
	var faults []error
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		var row bpf.KernelPort
		if d.objects.Ports.Lookup(ifindex, &row) != nil || row.Driver&(driverForwards|driverPieces) == 0 {
			continue
		}
		did = true
		row.Driver &^= driverForwards | driverPieces
		if err := d.objects.Ports.Put(ifindex, row); err != nil {
			faults = append(faults, fmt.Errorf("write port: %w", err))
		}
	}
	return did, errors.Join(faults...)
}

// describeDrivers writes what the drivers of a wire can do now. It says what changed
// for the worse, or back: one that takes no frames any more would lose them. mu is held.
func (d *Dataplane) describeDrivers(w Wire) (what string, err error) {
	can := map[uint32]uint64{}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		can[ifindex], err = xdpFeatures(ifindex)
		if w.Drivers && errors.Is(err, unix.ENODEV) {
			return "", nil // an interface is gone, and so is the wire
		}
		if err != nil {
			return "", err
		}
	}
	var lacking uint32
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		if can[ifindex]&(xdpRedirects|xdpTakes) != xdpRedirects|xdpTakes {
			lacking = ifindex
		}
	}
	changed := false
	for at, across := range map[uint32]uint32{w.Inside: w.Outside, w.Outside: w.Inside} {
		var row bpf.KernelPort
		if err := d.objects.Ports.Lookup(at, &row); err != nil {
			return "", fmt.Errorf("read port: %w", err)
		}
		before := row
		row.Driver &^= driverForwards | driverPieces
		if lacking == 0 {
			row.Driver |= driverForwards
			if can[across]&xdpTakesPieces != 0 {
				row.Driver |= driverPieces
			}
		}
		changed = changed || (row.Driver^before.Driver)&driverForwards != 0
		if row == before {
			continue
		}
		if err := d.objects.Ports.Put(at, row); err != nil {
			return "", fmt.Errorf("write port: %w", err)
		}
	}
	switch {
	case lacking != 0 && (changed || !w.Drivers):
		return fmt.Sprintf("%s takes no frames from other drivers (of a veth, its other end needs GRO or XDP): the stack forwards", nameOf(lacking)), nil
	case changed && w.Drivers:
		return fmt.Sprintf("the drivers of wire %s forward again", w.Name), nil
	}
	return "", nil
}

// lacksDrivers says whether a wire's drivers were found not to be able to forward.
func (d *Dataplane) lacksDrivers(w Wire) bool {
	var row bpf.KernelPort
	return d.objects.Ports.Lookup(w.Inside, &row) != nil || row.Driver&driverForwards == 0
}

// leaveDrivers has the drivers of a wire forward nothing, and leaves the interfaces as
// they were. Nothing is lost meanwhile: what they do not forward the stack does, and
// what one of them has let pass leaves by the other before that one is taken off.
func (d *Dataplane) leaveDrivers(w Wire) error {
	stopped, err := d.stopDrivers(w)
	faults := []error{err}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		if err := d.objects.Crossings.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			faults = append(faults, fmt.Errorf("delete crossing: %w", err))
		}
	}
	if stopped { // frames leave after the program has ended, so seeing it ended is not enough
		faults = append(faults, d.barrier.wait())
	}
	for _, ifindex := range []uint32{w.Inside, w.Outside} {
		faults = append(faults, d.pins.detach(ifindex, programDriver))
		for _, m := range d.takeMoves(ifindex, programDriver) {
			faults = append(faults, cutLink(m.path))
		}
		var row bpf.KernelPort
		if d.objects.Ports.Lookup(ifindex, &row) != nil || row.Driver == 0 {
			continue
		}
		faults = append(faults, stripTags(ifindex, row.Driver))
		row.Driver = 0
		if err := d.objects.Ports.Put(ifindex, row); err != nil {
			faults = append(faults, fmt.Errorf("write port: %w", err))
		}
	}
	return errors.Join(faults...)
}

// stripTags takes back what bareTags did, if the interface is still there.
func stripTags(ifindex uint32, bared uint8) error {
	l, err := linkAt(ifindex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range strippers {
		if bared&s.flag == 0 {
			continue
		}
		if _, err := host.SetFeature(l.Attrs().Name, s.feature, true); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may go this moment
			return fmt.Errorf("have %s take VLAN tags off frames again: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// What drivers can do with XDP (enum netdev_xdp_act).
const (
	xdpRedirects   = 1 << 1
	xdpTakes       = 1 << 2 // frames that others redirect to it
	xdpTakesPieces = 1 << 6
)

// xdpFeatures asks what the driver of an interface can do, as it is set up now.
func xdpFeatures(ifindex uint32) (uint64, error) {
	const get, attributeIndex, attributeFeatures = 1, 1, 3 // of the netdev family
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, fmt.Errorf("ask what drivers can do (Linux 6.3 or newer is needed): %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	// struct genlmsghdr whole, which nl.Genlmsg is not: the kernel looks at its end too.
	request.AddRawData(append([]byte{get, 1, 0, 0}, nl.NewRtAttr(attributeIndex, nl.Uint32Attr(ifindex)).Serialize()...))
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask what the driver of interface %d can do: %w", ifindex, err)
	}
	for _, reply := range replies {
		if len(reply) < nl.SizeofGenlmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(reply[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("read what the driver of interface %d can do: %w", ifindex, err)
		}
		at := slices.IndexFunc(attributes, func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type == attributeFeatures && len(a.Value) >= 8 })
		if at >= 0 {
			return binary.NativeEndian.Uint64(attributes[at].Value), nil
		}
	}
	return 0, nil
}
