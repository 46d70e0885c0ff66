package dataplane

import (
	"net"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// Whatever is described is a frame that the second reading finds well formed, and
// that holds the flow that was described.
func TestFrameHoldsItsFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		address := func(name string) netip.Addr {
			n := rapid.Byte().Draw(t, name)
			if four {
				return netip.AddrFrom4([4]byte{10, 1, 0, n})
			}
			return netip.AddrFrom16([16]byte{0xfd, 1, 15: n})
		}
		ends := Ends{Source: address("source"), Destination: address("destination"),
			SourceMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DestinationMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
		icmp := bocage.ProtocolICMPv6
		if four {
			icmp = bocage.ProtocolICMP
		}
		p := bocage.TracePacket{
			Protocol:   rapid.SampledFrom([]bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP, icmp, 47}).Draw(t, "protocol"),
			SourcePort: rapid.Uint16Min(1).Draw(t, "sport"), DestinationPort: rapid.Uint16().Draw(t, "dport"),
			Fragment: rapid.Bool().Draw(t, "fragment"), Payload: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload"),
		}
		frame, err := Frame(p, ends)
		if err != nil {
			t.Fatal(err)
		}
		if ends.Source != ends.Destination && p.Protocol != 47 && !wellFormed(frame) {
			t.Fatalf("frame %x is malformed", frame)
		}
		got, ok := FlowOf(frame)
		want := bocage.Flow{Source: ends.Source, Destination: ends.Destination, Protocol: p.Protocol}
		if p.Protocol.HasPorts() {
			want.SourcePort, want.DestinationPort = p.SourcePort, p.DestinationPort
		}
		if !ok || got != want {
			t.Fatalf("frame %x holds %v, want %v", frame, got, want)
		}
		head := 14
		if four && checksum(0, frame[head:head+20]) != 0 {
			t.Fatalf("the header's checksum of %x is wrong", frame)
		}
	})
	for _, p := range []bocage.TracePacket{{Protocol: bocage.ProtocolICMPv6}, {Protocol: bocage.ProtocolICMP}} {
		ends := Ends{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("fd00::1")}
		if p.Protocol == bocage.ProtocolICMPv6 {
			ends.Destination = netip.MustParseAddr("10.0.0.2")
		}
		if _, err := Frame(p, ends); err == nil {
			t.Errorf("%s from %s to %s is built", p.Protocol, ends.Source, ends.Destination)
		}
	}
}

func FuzzFlowOf(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame{source: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.2"), protocol: bocage.ProtocolTCP}.bytes())
	f.Add(frame{source: netip.MustParseAddr("fd00::1"), dst: netip.MustParseAddr("fd00::2"), protocol: bocage.ProtocolUDP,
		extensions: []extension{{kind: 60, data: make([]byte, 6)}}}.bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if flow, ok := FlowOf(data); ok && (!flow.Source.IsValid() || !flow.Destination.IsValid()) {
			t.Fatalf("%x holds %v", data, flow)
		}
	})
}
