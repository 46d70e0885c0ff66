package suricata

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// record is one line of EVE, the engine's event log (Suricata user guide,
// "EVE JSON Format"), as far as it is read here.
type record struct {
	Timestamp string   `json:"timestamp"`
	Type      string   `json:"event_type"`
	VLAN      []uint16 `json:"vlan"`
	Tenant    uint16   `json:"tenant_id"`
	Protocol  string   `json:"proto"`
	endpoints          // of the packet
	// Direction says which way the packet went: to_server or to_client.
	Direction string     `json:"direction"`
	Flow      *endpoints `json:"flow"` // as opened
	Alert     *alert     `json:"alert"`
	Drop      *drop      `json:"drop"`
}

type endpoints struct {
	Source          string `json:"src_ip"`
	Destination     string `json:"dest_ip"`
	SourcePort      uint16 `json:"src_port"`
	DestinationPort uint16 `json:"dest_port"`
}

type alert struct {
	Action    string                     `json:"action"` // allowed or blocked
	Signature int                        `json:"signature_id"`
	Title     string                     `json:"signature"`
	Category  string                     `json:"category"`
	Severity  int                        `json:"severity"`
	Metadata  map[string]json.RawMessage `json:"metadata"`
}

type drop struct {
	Reason string `json:"reason"`
}

// eveTime is how the engine writes a moment.
const eveTime = "2006-01-02T15:04:05.999999-0700"

// recordStart begins every line. Inside a JSON string its quotes would be escaped.
var recordStart = []byte(`{"timestamp":"`)

// decode reads one line. A line that an engine's death or a full disk cut short
// has the next one behind it: then the next one is what it returns.
func decode(line []byte) (record, error) {
	var r record
	err := json.Unmarshal(line, &r)
	if err == nil {
		return r, nil
	}
	if i := bytes.LastIndex(line, recordStart); i > 0 {
		r = record{}
		if json.Unmarshal(line[i:], &r) == nil {
			return r, nil
		}
	}
	return record{}, fmt.Errorf("read EVE line of %d bytes: %w", len(line), err)
}

// event turns a record into what travels. It is false for records that report
// nothing of their own: drops that follow from a signature, which its alert has
// reported already, and other types.
func (r *record) event(name func(number uint16) string) (bocage.InspectionEvent, bool, error) {
	when, err := time.Parse(eveTime, r.Timestamp)
	if err != nil {
		return bocage.InspectionEvent{}, false, fmt.Errorf("EVE time %q: %w", r.Timestamp, err)
	}
	event := bocage.InspectionEvent{Time: when.UTC(), Profile: name(r.profile())}
	switch {
	case r.Type == "alert" && r.Alert != nil:
		event.Signature, event.Title = r.Alert.Signature, r.Alert.Title
		event.Category, event.Severity = r.Alert.Category, r.Alert.Severity
		event.Blocked = r.Alert.Action == "blocked"
		event.Technique = technique(r.Alert.Metadata)
	case r.Type == "drop" && r.Drop != nil && !fromSignature(r.Drop.Reason):
		// The engine refused packets of its own accord, for memory or stream
		// state: not an attack by itself.
		event.Title, event.Severity, event.Blocked = "engine dropped packets: "+r.Drop.Reason, 4, true
	default:
		return bocage.InspectionEvent{}, false, nil
	}
	if event.Flow, err = r.flow(); err != nil {
		return bocage.InspectionEvent{}, false, err
	}
	return event, true, nil
}

func fromSignature(reason string) bool { return reason == "rules" || reason == "flow drop" }

// profile is the number that the dataplane pushed as outer VLAN id.
func (r *record) profile() uint16 {
	if r.Tenant != 0 {
		return r.Tenant
	}
	if len(r.VLAN) > 0 {
		return r.VLAN[0]
	}
	return 0
}

// flow is the flow as it was opened. An alert on an answer has the server as
// the packet's source, so the flow object decides, and without one the direction.
func (r *record) flow() (bocage.Flow, error) {
	ends := r.endpoints
	switch {
	case r.Flow != nil && r.Flow.Source != "":
		ends = *r.Flow
	case r.Direction == "to_client":
		ends = endpoints{ends.Destination, ends.Source, ends.DestinationPort, ends.SourcePort}
	}
	source, err := netip.ParseAddr(ends.Source)
	if err != nil {
		return bocage.Flow{}, fmt.Errorf("EVE source: %w", err)
	}
	destination, err := netip.ParseAddr(ends.Destination)
	if err != nil {
		return bocage.Flow{}, fmt.Errorf("EVE destination: %w", err)
	}
	flow := bocage.Flow{Source: source.WithZone("").Unmap(), Destination: destination.WithZone("").Unmap(), Protocol: protocol(r.Protocol)}
	if flow.Protocol.HasPorts() {
		flow.SourcePort, flow.DestinationPort = ends.SourcePort, ends.DestinationPort
	}
	return flow, nil
}

// protocol reads the engine's name or zero-filled number of an IP protocol;
// one that nobody here has a name for is 0.
func protocol(name string) bocage.Protocol {
	if strings.EqualFold(name, "IPv6-ICMP") {
		return bocage.ProtocolICMPv6
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		return bocage.Protocol(n)
	}
	p, err := bocage.ParseProtocol(name)
	if err != nil {
		return 0
	}
	return p
}

// techniqueKey is the metadata key by which rule writers name ATT&CK techniques.
const techniqueKey = "mitre_technique_id"

var techniqueID = regexp.MustCompile(`^T[0-9]{4}([._][0-9]{3})?$`)

// technique reads the first ATT&CK id of a signature's metadata, where each key
// has a list of values.
func technique(metadata map[string]json.RawMessage) string {
	var values []string
	if json.Unmarshal(metadata[techniqueKey], &values) != nil {
		return ""
	}
	for _, v := range values {
		if techniqueID.MatchString(v) {
			return strings.ReplaceAll(v, "_", ".")
		}
	}
	return ""
}
