package dataplane

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// BenchmarkRootEvents measures how many events a second go from the kernel's ring to
// whoever Run hands them to, by the time that reading takes of a processor, and that
// none is lost and none told twice: a source in the kernel writes as fast as the ring
// takes them, on a processor of its own where there is one.
//
//	go test -run '^$' -bench RootEvents ./dataplane/
func BenchmarkRootEvents(b *testing.B) {
	b.Run("read", func(b *testing.B) { benchmarkEvents(b, 1<<20) })
	b.Run("new-flows", benchmarkNewFlows)
}

func benchmarkEvents(b *testing.B, n int) {
	p := newPlane(b, func(c *Config) { c.EventBytes = 1 << 24 })
	source, written := p.eventSource()
	level, err := ringbuf.NewReader(p.objects.Events) // to see how full it is
	must(b, err)
	defer level.Close()
	var told atomic.Int64
	stop := p.handing(func(events []bocage.FlowEvent) { told.Add(int64(len(events))) })
	defer stop()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ResetTimer()
	began, used, own := time.Now(), processTime(), threadTime()
	sent := 0
	for round := range b.N {
		for sent < (round+1)*n {
			if level.AvailableBytes() > level.BufferSize()/2 {
				runtime.Gosched()
				continue
			}
			const burst = 4096
			_, err := source.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: burst})
			must(b, err)
			sent += burst
		}
	}
	var counts [2]uint64 // what found room, and what did not; a run that a signal interrupts runs again
	must(b, written.Lookup(uint32(0), &counts))
	for deadline := time.Now().Add(long); told.Load() < int64(counts[0]) && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	took, reading := time.Since(began), processTime()-used-(threadTime()-own)
	if told.Load() != int64(counts[0]) || counts[1] != 0 || counts[0] < uint64(sent) {
		b.Fatalf("of %d events %d were written, %d lost, and %d told", sent, counts[0], counts[1], told.Load())
	}
	b.ReportMetric(float64(sent)/reading.Seconds()/1e6, "Mevents/cpu-s")
	b.ReportMetric(float64(sent)/took.Seconds()/1e6, "Mevents/s")
	b.ReportMetric(float64(reading.Nanoseconds())/float64(sent), "ns/event")
}

// benchmarkNewFlows is the same with events of the programs themselves.
func benchmarkNewFlows(b *testing.B) {
	k := newPacketBench(b, func(c *Config) { c.FlowEntries, c.FlowsPerPort, c.EventBytes = 1<<18, 1<<18, 1<<24 })
	var told atomic.Int64
	stop := k.handing(func(events []bocage.FlowEvent) { told.Add(int64(len(events))) })
	defer stop()
	r, err := newRunner(k.objects.FromWorkload, loopback)
	must(b, err)
	const flows = 100_000
	f := k.out(bocage.ProtocolUDP)
	f.payload = 0
	frames := make([][]byte, flows)
	for i := range frames {
		f.sport, f.dport = uint16(i), uint16(1+i>>16)
		frames[i] = f.bytes()
	}
	b.ResetTimer()
	must(b, host.In(k.namespace, func() error {
		for range b.N {
			k.clearFlows()
			for _, raw := range frames {
				if verdict, err := r.run(raw); err != nil || verdict != next {
					return fmt.Errorf("program returned %d: %w", int32(verdict), err)
				}
			}
		}
		return nil
	}))
	c, err := k.Counters()
	must(b, err)
	for deadline := time.Now().Add(long); told.Load() < int64(c.Offered-c.Lost) && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if c.Lost != 0 || told.Load() != int64(c.Offered) || c.Offered < uint64(flows*b.N) {
		b.Fatalf("%d flows: %d events offered, %d lost, %d told", flows*b.N, c.Offered, c.Lost, told.Load())
	}
	b.ReportMetric(float64(c.Offered)/b.Elapsed().Seconds()/1e6, "Mevents/s")
}

// handing runs a dataplane for whoever counts its events.
func (p *plane) handing(each func([]bocage.FlowEvent)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- p.Dataplane.Run(ctx, func(events []bocage.FlowEvent, _ []bocage.Cadence) { each(events) })
	}()
	return func() {
		cancel()
		<-done
	}
}

// eventSource is a program that writes an event into the ring, and counts in a map
// whether there was room.
func (p *plane) eventSource() (*ebpf.Program, *ebpf.Map) {
	p.t.Helper()
	const noWakeup = 1
	event := bocage.FlowEvent{Time: time.Unix(0, 1), Kind: bocage.EventStart, Protocol: bocage.ProtocolTCP, Packets: 1,
		Verdict: bocage.VerdictAllow, Remote: stranger}
	record, err := event.AppendBinary(nil)
	must(p.t, err)
	written, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	must(p.t, err)
	p.t.Cleanup(func() { written.Close() })
	var code asm.Instructions
	for at := 0; at < len(record); at += 8 {
		word := int64(0)
		for i := range 8 {
			word |= int64(record[at+i]) << (8 * i)
		}
		code = append(code, asm.LoadImm(asm.R1, word, asm.DWord), asm.StoreMem(asm.RFP, int16(at-len(record)), asm.R1, asm.DWord))
	}
	code = append(code, asm.LoadMapPtr(asm.R1, p.objects.Events.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(-len(record))),
		asm.Mov.Imm(asm.R3, int32(len(record))), asm.Mov.Imm(asm.R4, noWakeup), asm.FnRingbufOutput.Call(),
		asm.LoadMapValue(asm.R1, written.FD(), 0), asm.Mov.Imm(asm.R2, 1), asm.JEq.Imm(asm.R0, 0, "room"), asm.Add.Imm(asm.R1, 8),
		asm.StoreXAdd(asm.R1, asm.R2, asm.DWord).WithSymbol("room"), asm.Mov.Imm(asm.R0, 0), asm.Return())
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: code})
	must(p.t, err)
	p.t.Cleanup(func() { program.Close() })
	return program, written
}
