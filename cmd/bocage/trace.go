package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/node"
)

func (e *env) traceCommand() *cobra.Command {
	var p bocage.TracePacket
	var host, direction, mac, toMAC, icmp, payload, capture string
	var packet int
	cmd := &cobra.Command{Use: "trace FROM TO PROTOCOL[/PORT] | trace --pcap FILE", Short: "Send a described packet through the loaded programs, beside the model, and count nothing",
		Long: `Ask what would become of a packet at an enforcement point of this host: the
programs are run on the maps that they go by, without touching a counter, a flow or
an event, and the model (what explain and plan go by) is asked beside them. FROM and
TO are addresses, or namespace/name of a workload; TO may be a DNS name of which the
DNS told FROM an address. Needs the rights of the agent of
this host, whose socket it asks.

The exit code is 0 if the packet passes, 4 if it is refused, and 7 if the programs
and the model disagree, which is a fault of Bocage.`,
		Example: "  bocage trace shop/web shop/api tcp/8080\n  bocage trace 10.0.0.9 shop/api tcp/22 --interface veth1 --direction to --flags ack\n  bocage trace --pcap strange.pcap --interface veth1 --direction from -o json",
		Args:    cobra.MaximumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := describe(&p, args, direction, icmp, payload, capture, packet); err != nil {
				return err
			}
			p.SourceMAC, p.DestinationMAC = mac, toMAC
			if faults := p.Validate(); len(faults) > 0 {
				return usage("%v", faults.Err())
			}
			cfg := node.Config{RunDir: e.runDir, Logger: e.logger(slog.LevelWarn)}
			trace, err := node.TracePacket(cmd.Context(), cfg, p)
			if errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%w: the agent's socket is for root and the agent's own user", err)
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
				return &exitError{exitFailed, fmt.Sprintf("ask the agent of this host: nobody answers at %s: is it running? `bocage doctor` looks, `bocage up` starts one, --run-dir names another folder", cfg.AgentSocket())}
			}
			if err != nil {
				return err
			}
			if host != "" && host != trace.Host {
				return usage("--host: this is %s: run it on %s, where the packet is", trace.Host, host)
			}
			switch e.output {
			case "json", "jsonl", "yaml":
				err = e.printValue(trace)
			default:
				e.printTrace(trace)
			}
			if err != nil {
				return err
			}
			return traced(trace)
		}}
	flags := cmd.Flags()
	flags.StringVar(&host, "host", "", "the host that is meant, if that should be made sure")
	flags.StringVar(&p.Interface, "interface", "", "enforcement point (default: that of FROM, else of TO)")
	flags.StringVar(&direction, "direction", "", "from or to the workload behind the interface")
	flags.Uint16Var(&p.SourcePort, "source-port", 0, "source port (default 49152)")
	flags.StringSliceVar(&p.Flags, "flags", nil, "TCP flags (default syn)")
	flags.StringVar(&icmp, "icmp", "", "type or type/code of ICMP (default: an echo request)")
	flags.StringVar(&mac, "mac", "", "source MAC (default: the port's)")
	flags.StringVar(&toMAC, "to-mac", "", "destination MAC (default: the port's)")
	flags.BoolVar(&p.Fragment, "fragment", false, "the first piece of a larger packet")
	flags.Uint16Var(&p.VLAN, "vlan", 0, "VLAN tag")
	flags.StringVar(&payload, "payload", "", "what it carries, in hexadecimal, or @FILE")
	flags.StringVar(&capture, "pcap", "", "capture file with the whole packet")
	flags.IntVar(&packet, "packet", 1, "which packet of --pcap")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// describe reads the command line into a description.
func describe(p *bocage.TracePacket, args []string, direction, icmp, payload, capture string, packet int) error {
	if direction != "" {
		var d bocage.Direction
		if err := d.UnmarshalText([]byte(direction)); err != nil {
			return usage("--direction: %v", err)
		}
		p.Direction = &d
	}
	if capture != "" {
		if len(args) > 0 {
			return usage("--pcap has the whole packet: leave out %s", strings.Join(args, " "))
		}
		data, err := os.ReadFile(capture)
		if err != nil {
			return fmt.Errorf("read the capture: %w", err)
		}
		if p.Frame, err = captured(data, packet); err != nil {
			return fmt.Errorf("%s: %w", capture, err)
		}
		return nil
	}
	if len(args) != 3 {
		return usage("trace needs FROM, TO and PROTOCOL[/PORT], or --pcap: see `bocage trace --help`")
	}
	p.Source, p.Destination = args[0], args[1]
	protocol, port, hasPort := strings.Cut(args[2], "/")
	if err := p.Protocol.UnmarshalText([]byte(protocol)); err != nil {
		return usage("%v", err)
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || !p.Protocol.HasPorts() {
			return usage("%q is not a protocol and a port such as tcp/80", args[2])
		}
		p.DestinationPort = uint16(n)
	} else if p.Protocol.HasPorts() {
		return usage("%s needs a destination port: %s/80", p.Protocol, protocol)
	}
	if err := describeICMP(p, icmp); err != nil {
		return err
	}
	var err error
	p.Payload, err = payloadOf(payload)
	return err
}

func describeICMP(p *bocage.TracePacket, text string) error {
	if text == "" {
		return nil
	}
	kind, code, hasCode := strings.Cut(text, "/")
	n, err := strconv.ParseUint(kind, 10, 8)
	if err == nil && hasCode {
		var c uint64
		c, err = strconv.ParseUint(code, 10, 8)
		p.ICMPCode = uint8(c)
	}
	if err != nil {
		return usage("--icmp %q is not a type, or a type and a code such as 3/1", text)
	}
	t := uint8(n)
	p.ICMPType = &t
	return nil
}

func payloadOf(text string) ([]byte, error) {
	if file, ok := strings.CutPrefix(text, "@"); ok {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the payload: %w", err)
		}
		return data, nil
	}
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		return nil, usage("--payload %q is neither hexadecimal nor @FILE", text)
	}
	return data, nil
}

func (e *env) printTrace(t bocage.Trace) {
	packet := fmt.Sprintf("%d bytes", len(t.Frame))
	if t.Packet != nil {
		packet = t.Packet.String()
	}
	fmt.Fprintf(e.out, "%s at %s of %s, %s the workload\n", packet, t.Interface, t.Host, t.Direction)
	for _, s := range t.Steps {
		fmt.Fprintf(e.out, "  %-12s %s\n", s.Name, s.Said)
	}
	if t.Model != nil {
		fmt.Fprintf(e.out, "  %-12s %s\n", "model", t.Model)
	}
	if t.Disagreement != "" {
		fmt.Fprintf(e.out, "\n!!! THE PROGRAMS AND THE MODEL DISAGREE: %s.\n!!! This is a fault of Bocage: keep `bocage trace ... -o json` and report it.\n", t.Disagreement)
	}
}

func traced(t bocage.Trace) error {
	switch {
	case t.Disagreement != "":
		return &exitError{exitDisagree, "the programs and the model disagree: " + t.Disagreement}
	case t.Outcome == "passes" || t.Outcome == "steered":
		return nil
	}
	return &exitError{code: exitDenied}
}
