package bpf

import (
	_ "embed"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"bocage.dev/bocage/host/hosttest"
)

//go:embed kernel.h
var kernelHeader string

// What kernel.h says of the kernel is what the kernel says of itself.
func TestRootKernelHeader(t *testing.T) {
	hosttest.Root(t)
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"__sk_buff", "xdp_md"} {
		var ours, theirs *btf.Struct
		if err := spec.Types.TypeByName(name, &ours); err != nil {
			t.Fatal(err)
		}
		if err := kernel.TypeByName(name, &theirs); err != nil {
			t.Fatal(err)
		}
		offsets := offsetsOf(theirs)
		for _, m := range ours.Members {
			if m.Name == "" {
				continue
			}
			if at, ok := offsets[m.Name]; !ok || at != m.Offset {
				t.Errorf("%s.%s is at bit %d, the kernel has it at %d (%v)", name, m.Name, m.Offset, at, ok)
			}
		}
	}
	for _, h := range headers {
		var theirs *btf.Struct
		if err := kernel.TypeByName(h.theirs, &theirs); err != nil {
			t.Fatal(err)
		}
		offsets := offsetsOf(theirs)
		text := regexp.MustCompile(`(?s)struct ` + h.ours + ` \{(.*?)\n\}`).FindStringSubmatch(kernelHeader)
		if text == nil {
			t.Fatalf("kernel.h has no struct %s", h.ours)
		}
		ours := layout(t, text[1])
		for field, theirField := range h.fields {
			if at, ok := offsets[theirField]; !ok || uint32(at) != uint32(ours[field]*8) {
				t.Errorf("%s.%s is at byte %d, the kernel's %s.%s at bit %d (%v)", h.ours, field, ours[field], h.theirs, theirField, at, ok)
			}
		}
	}
	numbers := enumsOf(t, kernel, "bpf_map_type", "bpf_func_id", "tcx_action_base", "xdp_action")
	helper := regexp.MustCompile(`\(\*const (bpf_\w+)\).*\(void \*\)(\d+);`)
	found := 0
	for _, m := range helper.FindAllStringSubmatch(kernelHeader, -1) {
		found++
		check(t, numbers, strings.Replace(m[1], "bpf_", "BPF_FUNC_", 1), m[2])
	}
	define := regexp.MustCompile(`#define ((?:BPF_MAP_TYPE|TCX|XDP)_\w+) (-?\d+)`)
	for _, m := range define.FindAllStringSubmatch(kernelHeader, -1) {
		found++
		check(t, numbers, m[1], m[2])
	}
	if found < 20 {
		t.Errorf("only %d numbers found in kernel.h", found)
	}
}

// headers of packets, by the kernel's names.
var headers = []struct {
	ours, theirs string
	fields       map[string]string
}{
	{"ethernet", "ethhdr", map[string]string{"destination": "h_dest", "source": "h_source", "type": "h_proto"}},
	{"ipv4", "iphdr", map[string]string{"service": "tos", "length": "tot_len", "id": "id", "fragment": "frag_off", "ttl": "ttl",
		"protocol": "protocol", "checksum": "check", "source": "saddr", "destination": "daddr"}},
	{"ipv6", "ipv6hdr", map[string]string{"length": "payload_len", "next": "nexthdr", "hops": "hop_limit", "source": "saddr", "destination": "daddr"}},
	{"tcp", "tcphdr", map[string]string{"source": "source", "destination": "dest", "sequence": "seq", "acknowledgement": "ack_seq",
		"window": "window", "checksum": "check", "urgent": "urg_ptr"}},
	{"udp", "udphdr", map[string]string{"source": "source", "destination": "dest", "length": "len", "checksum": "check"}},
}

func check(t *testing.T, numbers map[string]int64, name, text string) {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if want, ok := numbers[name]; err != nil || !ok || n != want {
		t.Errorf("%s is %s in kernel.h and %d in the kernel (%v)", name, text, want, ok)
	}
}

// offsetsOf lists members with their offsets in bits, those of anonymous unions
// and structs included.
func offsetsOf(s *btf.Struct) map[string]btf.Bits {
	all := make(map[string]btf.Bits)
	var walk func(members []btf.Member, base btf.Bits)
	walk = func(members []btf.Member, base btf.Bits) {
		for _, m := range members {
			if m.Name != "" {
				all[m.Name] = base + m.Offset
			}
			switch inner := btf.UnderlyingType(m.Type).(type) {
			case *btf.Union:
				walk(inner.Members, base+m.Offset)
			case *btf.Struct:
				if m.Name == "" || m.Name == "addrs" {
					walk(inner.Members, base+m.Offset)
				}
			}
		}
	}
	walk(s.Members, 0)
	return all
}

// layout reads the offsets in bytes of the plain fields of a struct without gaps.
func layout(t *testing.T, body string) map[string]int {
	sizes := map[string]int{"__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8}
	field := regexp.MustCompile(`(__u\d+) (\w+)(?:\[(\d+)\])?;`)
	at, all := 0, make(map[string]int)
	for _, m := range field.FindAllStringSubmatch(body, -1) {
		n := 1
		if m[3] != "" {
			n, _ = strconv.Atoi(m[3])
		}
		all[m[2]] = at
		at += sizes[m[1]] * n
	}
	if at == 0 {
		t.Fatalf("no fields in %q", body)
	}
	return all
}

func enumsOf(t *testing.T, kernel *btf.Spec, names ...string) map[string]int64 {
	all := make(map[string]int64)
	for _, name := range names {
		var e *btf.Enum
		if err := kernel.TypeByName(name, &e); err != nil {
			t.Fatal(err)
		}
		for _, v := range e.Values {
			all[v.Name] = int64(int32(v.Value))
		}
	}
	return all
}

// Programs stay far from the verifier's limit of a million instructions, on
// which a kernel that reasons less well than this one also counts.
func TestRootProgramsStaySmall(t *testing.T) {
	hosttest.Root(t)
	limits := map[string]uint32{"from_workload": 260_000, "to_workload": 260_000, "from_decoy": 75_000,
		"from_engine_outside": 500, "from_engine_inside": 82_000, "sweep": 60_000,
		"across_wire": 280_000, "out_of_wire": 20, "across_drivers": 260_000, "stage": 58_000, "inherit": 60_000}
	var objects KernelObjects
	if err := LoadKernelObjects(&objects, nil); err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	programs := map[string]*ebpf.Program{"from_workload": objects.FromWorkload, "to_workload": objects.ToWorkload,
		"from_decoy": objects.FromDecoy, "from_engine_outside": objects.FromEngineOutside,
		"from_engine_inside": objects.FromEngineInside, "sweep": objects.Sweep,
		"across_wire": objects.AcrossWire, "out_of_wire": objects.OutOfWire, "stage": objects.Stage, "across_drivers": objects.AcrossDrivers,
		"inherit": objects.Inherit}
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(spec.Programs)), slices.Sorted(maps.Keys(limits)); !slices.Equal(got, want) {
		t.Errorf("programs %v, want %v", got, want)
	}
	for name, program := range programs {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, ok := info.VerifiedInstructions()
		if !ok {
			t.Skip("this kernel does not tell")
		}
		t.Logf("%s: %d instructions verified", name, verified)
		if verified > limits[name] {
			t.Errorf("%s: the verifier went through %d instructions, more than %d", name, verified, limits[name])
		}
	}
}

// The deepest chain of calls fits the kernel's 512 bytes, also where each frame is
// rounded up to 32 bytes, as kernels before 6.8 do.
func TestStackFits(t *testing.T) {
	const room, frame = 512, 32
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range spec.Programs {
		depths, calls := map[string]int{}, map[string][]string{}
		at := ""
		copied := map[asm.Register]bool{} // registers that hold the frame pointer
		for _, ins := range program.Instructions {
			if symbol := ins.Symbol(); symbol != "" && !strings.HasPrefix(symbol, "LBB") {
				at, depths[symbol], copied = symbol, max(depths[symbol], 1), map[asm.Register]bool{}
			}
			deeper := func(n int) {
				depths[at] = max(depths[at], -n)
			}
			switch {
			case ins.IsFunctionCall():
				calls[at] = append(calls[at], ins.Reference())
			case ins.OpCode.Class() == asm.ALU64Class && ins.OpCode.ALUOp() == asm.Mov && ins.Src == asm.RFP:
				copied[ins.Dst] = true
			case ins.OpCode.Class() == asm.ALU64Class && ins.OpCode.ALUOp() == asm.Add && copied[ins.Dst]:
				deeper(int(ins.Constant))
				delete(copied, ins.Dst)
			case ins.Dst == asm.RFP || ins.Src == asm.RFP:
				deeper(int(ins.Offset))
			}
		}
		var deepest func(function string) (int, string)
		deepest = func(function string) (int, string) {
			below, path := 0, ""
			for _, callee := range calls[function] {
				if depth, way := deepest(callee); depth > below {
					below, path = depth, way
				}
			}
			return (depths[function]+frame-1)/frame*frame + below, function + " " + path
		}
		depth, path := deepest(program.Instructions[0].Symbol())
		t.Logf("%s: %d bytes by %s", name, depth, path)
		if depth > room {
			t.Errorf("%s: %d bytes of stack by %s, more than %d", name, depth, path, room)
		}
		if name == "from_workload" && depth < 200 {
			t.Errorf("%s: %d bytes of stack: this test has lost its way", name, depth)
		}
	}
}

// What other flows need costs a packet of a known flow nothing: the short way looks
// into no table of steering, verification, fragments, refusals, names or rates, nor
// into any of policy's. What it looks into is listed here, with what calls it makes.
func TestShortWayTouchesNothingElse(t *testing.T) {
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	touched, called := map[string]bool{}, map[string]bool{}
	short := []string{"pass_fast", "pass_tagged", "pass_driver"}
	for _, name := range []string{"from_workload", "to_workload", "across_wire", "across_drivers"} {
		at := ""
		for _, ins := range spec.Programs[name].Instructions {
			if symbol := ins.Symbol(); symbol != "" && !strings.HasPrefix(symbol, "LBB") {
				at = symbol
			}
			switch {
			case !slices.Contains(short, at) || ins.Reference() == "":
			case ins.IsFunctionCall():
				called[ins.Reference()] = true
			case ins.IsLoadFromMap() && spec.Maps[ins.Reference()] != nil && !strings.HasPrefix(ins.Reference(), "."):
				touched[ins.Reference()] = true
			}
		}
	}
	want := []string{"active", "counters", "crossings", "flows", "guides", "ports", "presences", "topology"}
	if got := slices.Sorted(maps.Keys(touched)); !slices.Equal(got, want) {
		t.Errorf("the short way looks into %q, and is to look into %q", got, want)
	}
	if got, want := slices.Sorted(maps.Keys(called)), []string{"break_silence"}; !slices.Equal(got, want) {
		t.Errorf("the short way calls %q, and is to call %q", got, want)
	}
}

// What every packet of a known flow runs through, and each stage of a new one, has a
// budget in instructions: who adds to one sees it here.
func TestStagesKeepTheirBudgets(t *testing.T) {
	budgets := map[string]int{
		"pass_fast":     1050, // the short way, of which a packet runs through about a third
		"find_row":      240,
		"choose_row":    480,
		"claim_row":     360,
		"prevails":      200,
		"rival_of":      230,
		"judge_by":      330,
		"identify":      150,
		"rule_on_cell":  340,
		"bind_end":      500,
		"judge":         290,
		"pick_up":       200,
		"dispatch":      550,
		"open_flow":     790,
		"admit":         900,
		"read_packet":   1150,
		"track":         230,
		"pass_direct":   330,
		"find_ways":     190,
		"from_workload": 880,
		"to_workload":   880,
		// Events and refusals.
		"report_flow":    200,
		"report_refusal": 125,
		"account":        250,
		"end_flow":       350,
		// Cadence.
		"break_silence":  310,
		"report_cadence": 410,
		// Fragments.
		"piece_together": 250,
		"remember":       110,
		"must_be_whole":  30,
		"allow_piece":    90,
		// Verification.
		"hear_segment":   330,
		"attend":         350,
		"overhear":       480,
		"classify":       60,
		"hear_datagram":  190,
		"hear_datagrams": 150,
		// Names and rates.
		"judge_named":  120,
		"limit_opener": 90,
		"count_opener": 150,
		"begin_again":  430,
		// Wires.
		"across_wire": 1000,
		"pass_tagged": 900,
		"pass_driver": 1000,
		"admit_wired": 220,
	}
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(map[string]int)
	for _, name := range []string{"from_workload", "to_workload", "across_wire", "across_drivers"} {
		at := ""
		count := make(map[string]int)
		for _, ins := range spec.Programs[name].Instructions {
			if symbol := ins.Symbol(); symbol != "" && !strings.HasPrefix(symbol, "LBB") {
				at = symbol
			}
			count[at]++
		}
		maps.Copy(sizes, count)
	}
	for name, most := range budgets {
		if n := sizes[name]; n == 0 || n > most {
			t.Errorf("%s has %d instructions, and a budget of %d", name, n, most)
		}
	}
}

// One hook is one file that reads as a sentence.
func TestSourcesStayShort(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".c") {
			continue
		}
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > 150 {
			t.Errorf("%s has %d lines, more than 150", f.Name(), n)
		}
		if strings.Contains(string(text), "#if") {
			t.Errorf("%s has an #if: volatile const globals configure", f.Name())
		}
	}
}
