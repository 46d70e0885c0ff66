package suricata

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"bocage.dev/bocage"
)

func TestRecordsBecomeEvents(t *testing.T) {
	address := netip.MustParseAddr
	when := time.Date(2026, 11, 21, 22, 48, 58, 301186000, time.UTC)
	for _, c := range []struct {
		name, line string
		want       bocage.InspectionEvent
	}{
		{"alert to the server",
			`{"timestamp":"2026-11-21T22:48:58.301186+0000","flow_id":1,"in_iface":"outside","event_type":"alert","vlan":[7],"src_ip":"10.0.7.1","src_port":40000,"dest_ip":"10.0.7.2","dest_port":80,"proto":"TCP","tenant_id":7,"alert":{"action":"blocked","gid":1,"signature_id":9,"rev":1,"signature":"title","category":"class","severity":1,"metadata":{"mitre_technique_id":["T1190"]}},"direction":"to_server","flow":{"src_ip":"10.0.7.1","dest_ip":"10.0.7.2","src_port":40000,"dest_port":80}}`,
			bocage.InspectionEvent{Time: when, Profile: "p7", Signature: 9, Title: "title", Category: "class", Severity: 1, Blocked: true, Technique: "T1190",
				Flow: bocage.Flow{Source: address("10.0.7.1"), Destination: address("10.0.7.2"), SourcePort: 40000, DestinationPort: 80, Protocol: bocage.ProtocolTCP}}},
		{"alert on an answer",
			`{"timestamp":"2026-11-21T23:48:58.301186+0100","event_type":"alert","vlan":[8,5],"src_ip":"fd00::2","src_port":80,"dest_ip":"fd00::1","dest_port":40000,"proto":"TCP","alert":{"action":"allowed","signature_id":9,"signature":"t","severity":3,"metadata":{"mitre_technique_id":["no","T1059_004"],"other":[1]}},"direction":"to_client","flow":{"src_ip":"fd00::1","dest_ip":"fd00::2","src_port":40000,"dest_port":80}}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Signature: 9, Title: "t", Severity: 3, Technique: "T1059.004",
				Flow: bocage.Flow{Source: address("fd00::1"), Destination: address("fd00::2"), SourcePort: 40000, DestinationPort: 80, Protocol: bocage.ProtocolTCP}}},
		{"alert on an answer, of an engine that does not describe the flow",
			`{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert","vlan":[8],"src_ip":"10.0.0.2","src_port":53,"dest_ip":"10.0.0.1","dest_port":40000,"proto":"UDP","alert":{"signature_id":9,"signature":"t","severity":3},"direction":"to_client"}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Signature: 9, Title: "t", Severity: 3,
				Flow: bocage.Flow{Source: address("10.0.0.1"), Destination: address("10.0.0.2"), SourcePort: 40000, DestinationPort: 53, Protocol: bocage.ProtocolUDP}}},
		{"protocol without ports",
			`{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert","vlan":[8],"src_ip":"fd00::1","src_port":8,"dest_ip":"fd00::2","dest_port":1,"proto":"IPv6-ICMP","icmp_type":128,"alert":{"signature_id":9,"signature":"t","severity":3}}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Signature: 9, Title: "t", Severity: 3,
				Flow: bocage.Flow{Source: address("fd00::1"), Destination: address("fd00::2"), Protocol: bocage.ProtocolICMPv6}}},
		{"protocol without a name",
			`{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert","vlan":[8],"src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"047","alert":{"signature_id":9,"signature":"t","severity":3}}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Signature: 9, Title: "t", Severity: 3,
				Flow: bocage.Flow{Source: address("10.0.0.1"), Destination: address("10.0.0.2"), Protocol: 47}}},
		{"the engine's own drop",
			`{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"drop","vlan":[8],"src_ip":"10.0.0.1","src_port":1,"dest_ip":"10.0.0.2","dest_port":2,"proto":"TCP","direction":"to_server","drop":{"len":60,"reason":"stream memcap"}}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Title: "engine dropped packets: stream memcap", Severity: 4, Blocked: true,
				Flow: bocage.Flow{Source: address("10.0.0.1"), Destination: address("10.0.0.2"), SourcePort: 1, DestinationPort: 2, Protocol: bocage.ProtocolTCP}}},
		{"a line behind one that was cut short",
			`{"timestamp":"2026-11-21T22:00:00.000000+0000","event_type":"al{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert","vlan":[8],"src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"SCTP","alert":{"signature_id":9,"signature":"says {\"timestamp\":\"x","severity":3}}`,
			bocage.InspectionEvent{Time: when, Profile: "p8", Signature: 9, Title: `says {"timestamp":"x`, Severity: 3,
				Flow: bocage.Flow{Source: address("10.0.0.1"), Destination: address("10.0.0.2"), Protocol: bocage.ProtocolSCTP}}},
	} {
		r, err := decode([]byte(c.line))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, ok, err := r.event(numbered)
		if err != nil || !ok || got != c.want {
			t.Errorf("%s:\n got %+v %t %v\nwant %+v", c.name, got, ok, err, c.want)
		}
	}
}

func numbered(n uint16) string { return "p" + strconv.Itoa(int(n)) }

func TestRecordsThatReportNothing(t *testing.T) {
	for name, line := range map[string]string{
		"a drop that its alert has told": `{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"drop","src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"TCP","drop":{"reason":"rules"}}`,
		"a later packet of such a flow":  `{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"drop","src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"TCP","drop":{"reason":"flow drop"}}`,
		"another type":                   `{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"stats","stats":{}}`,
		"an alert without one":           `{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert"}`,
	} {
		r, err := decode([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, ok, err := r.event(numbered); ok || err != nil {
			t.Errorf("%s: %t %v", name, ok, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"alert","vlan":[8],"src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"TCP","alert":{"signature_id":9,"metadata":{"mitre_technique_id":["T1190"]}},"flow":{"src_ip":"::1"}}`))
	f.Add([]byte(`{"timestamp":"{"timestamp":"2026-11-21T22:48:58.301186+0000","event_type":"drop","drop":{"reason":"x"}}`))
	f.Add([]byte(`{"timestamp":"","event_type":"alert","vlan":[-1]}`))
	f.Add([]byte("\x00\xff{"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decode(line)
		if err != nil {
			return
		}
		e, ok, err := r.event(numbered)
		if ok && err == nil && (!e.Flow.Source.IsValid() || !e.Flow.Destination.IsValid() || e.Title == "" && e.Signature == 0 && e.Blocked && r.Type == "drop") {
			t.Errorf("half an event of %q: %+v", line, e)
		}
	})
}

func FuzzEngineLog(f *testing.F) {
	for _, name := range []string{"refused.log", "loaded.log"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		said := readEngineLog(log)
		if refusal := said.refusal("p"); len(refusal.Faults) == 0 || len(refusal.Error()) > 100_000 {
			t.Errorf("refusal of %q: %v", log, refusal)
		}
	})
}

func FuzzNormalize(f *testing.F) {
	f.Add("reject tcp any any -> any any (sid:1;)\r\n# reject\n a \\\nreject b\n")
	f.Fuzz(func(t *testing.T, signatures string) {
		got := normalize(signatures)
		if again := normalize(string(got)); !bytes.Equal(again, got) && !bytes.Contains(got, []byte("\r")) {
			t.Errorf("%q becomes %q, then %q", signatures, got, again)
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1 2"))
	f.Add([]byte(")"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseStat(data); err == nil && s.state == 0 {
			t.Errorf("state 0 of %q", data)
		}
	})
}
