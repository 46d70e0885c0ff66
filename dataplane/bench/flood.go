package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

var floodTests = []test{{[]figure{{name: "SYNs refused/s"}}, flood}}

// floodVariants are what refuses the flood, nftables at each of its hooks.
func floodVariants(p *path, o options) []variant {
	var variants []variant
	if nft := nftProgram(); nft != "" {
		drop := fmt.Sprintf("tcp dport %d drop", portRefused)
		variants = append(variants,
			nftables{program: nft, path: p, entries: 10},
			nftablesHook{nftables{program: nft, path: p}, "raw prerouting", "type filter hook prerouting priority raw; " + drop},
			nftablesHook{nftables{program: nft, path: p}, "netdev ingress", "type filter hook ingress device client priority 0; " + drop})
	}
	return append(variants, &protected{path: p, entries: 1_000}, &floodedDriver{wired{protected{path: p, entries: 1_000}, true}}, generatorAlone{p})
}

// floodedDriver is a wire whose driver refuses the flood before there are packets.
type floodedDriver struct{ wired }

func (f *floodedDriver) prepare() error {
	return errors.Join(f.path.likeCables(), f.wired.prepare())
}

func (f *floodedDriver) start() error {
	if err := f.wired.start(); err != nil {
		return err
	}
	program, err := f.driver()
	if err != nil {
		return err
	}
	defer program.Close()
	return f.path.meetEarly(program)
}

func (f *floodedDriver) stop() error {
	return errors.Join(f.path.meetEarly(nil), f.wired.stop())
}

// driver is the program that was attached to the client's link.
func (f *floodedDriver) driver() (*ebpf.Program, error) {
	var found *ebpf.Program
	err := filepath.WalkDir(f.pins(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || found != nil {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil // a map
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil || info.Type != link.XDPType || info.XDP().Ifindex != f.path.client.ifindex {
			return err
		}
		found, err = ebpf.NewProgramFromID(info.Program)
		return err
	})
	if err == nil && found == nil {
		err = errors.New("no driver of the wire refuses anything")
	}
	return found, err
}

// nftablesHook refuses earlier than connections are tracked, and so knows less.
type nftablesHook struct {
	nftables
	hook, chain string
}

func (n nftablesHook) name() string { return "nftables " + n.hook }

func (n nftablesHook) start() error {
	family := "ip"
	if n.hook == "netdev ingress" {
		family = "netdev"
	}
	return n.run(fmt.Sprintf("table %s bench {\nchain refuse { %s; }\n}\n", family, n.chain))
}

func (n nftablesHook) stop() error {
	if n.hook == "netdev ingress" {
		return n.run("delete table netdev bench")
	}
	return n.run("delete table ip bench")
}

// portRefused is where the flood goes; nothing allows it.
const portRefused = 7009

// flood has SYNs that are refused come in from the client, from every port in
// turn. What makes them and what refuses them share a CPU, so the rate has the
// costs of both; that of generatorAlone is what making them costs.
func flood(p *path, d time.Duration) ([]float64, error) {
	var rate float64
	var failed error
	p.onCPU(0, ofClient, func() {
		failed = host.In(p.host, func() error {
			p.keepTo(0, ofClient)
			var err error
			rate, err = p.receive(p.syn(portRefused), d)
			return err
		})
	})()
	return []float64{rate}, failed
}

// receive has the kernel take a frame in from the client's link, again and again.
func (p *path) receive(frame []byte, d time.Duration) (float64, error) {
	const round = 1 << 19       // the kernel takes some 20 ms to begin and end one
	context := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(context[4:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(context[12:], p.client.ifindex)
	received := 0
	start := time.Now()
	for time.Since(start) < d {
		_, err := p.flood.SendFlood.Run(&ebpf.RunOptions{Data: frame, Context: context, Repeat: round, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("take frames in: %w", err)
		}
		received += round
	}
	return float64(received) / time.Since(start).Seconds(), nil
}

// syn is a frame from the client to the server by way of the host.
func (p *path) syn(port uint16) []byte {
	f := make([]byte, 54)
	copy(f, p.client.hostMAC)
	copy(f[6:], p.client.mac)
	f[12], f[13] = 0x08, 0
	ip, tcp := f[14:34], f[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], 40)
	copy(ip[12:], p.client.address.AsSlice())
	copy(ip[16:], p.server.address.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	binary.BigEndian.PutUint16(tcp, 1024)
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12], tcp[13] = 5<<4, 2 // SYN
	binary.BigEndian.PutUint16(tcp[14:], 64240)
	pseudo := append([]byte{}, ip[12:20]...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	return f
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// meetEarly has a program meet the flood before the host's stack does; nil: none.
func (p *path) meetEarly(program *ebpf.Program) error {
	if program == nil {
		return p.flood.Early.Delete(uint32(0))
	}
	return p.flood.Early.Put(uint32(0), program)
}

// generatorAlone drops the flood as early as can be.
type generatorAlone struct{ path *path }

func (g generatorAlone) name() string   { return "generator alone" }
func (g generatorAlone) prepare() error { return nil }
func (g generatorAlone) start() error   { return g.path.meetEarly(g.path.flood.DropAll) }
func (g generatorAlone) stop() error    { return g.path.meetEarly(nil) }
func (g generatorAlone) remove() error  { return nil }

// loadFlood gets the path what makes floods.
func (p *path) loadFlood() error {
	if err := loadFloodObjects(&p.flood, nil); err != nil {
		return fmt.Errorf("load the flood's programs: %w", err)
	}
	return nil
}
