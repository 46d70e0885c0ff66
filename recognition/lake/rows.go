package lake

import (
	"encoding/json"
	"fmt"
	"time"

	"bocage.dev/bocage"
)

// Classes of event, each a folder. OCSF has no class for decoys, none for cadences
// and none for greetings; theirs are ours.
const (
	classFlows       = "network_activity"
	classCadences    = "flow_cadence"
	classGreetings   = "tls_greeting"
	classDetections  = "detection_finding"
	classEngagements = "decoy_engagement"
)

func classes() []string {
	return []string{classFlows, classCadences, classGreetings, classDetections, classEngagements}
}

// origin is where a record came from: "source/boot/sequence/index" is the form in
// which incidents name it.
type origin struct {
	Host     string `parquet:"host,dict"`
	Source   string `parquet:"source,dict"`
	Boot     string `parquet:"boot,dict"`
	Sequence int64  `parquet:"sequence,delta"`
	Index    int64  `parquet:"index,delta"`
}

// flowRow is OCSF Network Activity (4001), flat: time in milliseconds since 1970,
// signed counters. Enumerations as OCSF 1.x numbers them are class_uid,
// activity_id, action_id and disposition_id; the words are ours.
type flowRow struct {
	Time          int64  `parquet:"time,delta"`
	TimeDT        int64  `parquet:"time_dt,timestamp(millisecond),delta"`
	ClassUID      int32  `parquet:"class_uid,dict"`
	ActivityID    int32  `parquet:"activity_id,dict"`
	ActionID      int32  `parquet:"action_id,dict"`
	DispositionID int32  `parquet:"disposition_id,dict"`
	Event         string `parquet:"event,dict"`
	SrcName       string `parquet:"src_endpoint_name,dict"`
	SrcIP         string `parquet:"src_endpoint_ip,dict"`
	SrcPort       int32  `parquet:"src_endpoint_port"`
	SrcIdentity   int64  `parquet:"src_identity,dict"`
	DstName       string `parquet:"dst_endpoint_name,dict"`
	DstIP         string `parquet:"dst_endpoint_ip,dict"`
	DstPort       int32  `parquet:"dst_endpoint_port,dict"`
	DstIdentity   int64  `parquet:"dst_identity,dict"`
	Protocol      int32  `parquet:"connection_info_protocol_num,dict"`
	ProtocolName  string `parquet:"connection_info_protocol_name,dict"`
	Direction     string `parquet:"direction,dict"`
	Verdict       string `parquet:"verdict,dict"`
	Would         string `parquet:"would,dict"`
	Reason        string `parquet:"reason,dict"`
	Decision      int64  `parquet:"firewall_rule_uid,dict"`
	Generation    int64  `parquet:"generation,dict"`
	Replied       bool   `parquet:"replied"`
	Closed        bool   `parquet:"closed"`
	Packets       int64  `parquet:"traffic_packets"`
	Bytes         int64  `parquet:"traffic_bytes"`
	Interface     int64  `parquet:"interface,dict"`
	Spoken        string `parquet:"app_protocol_name,dict"`
	origin
}

// ends is who takes part in a finding or an engagement.
type ends struct {
	SrcName      string `parquet:"src_endpoint_name,dict"`
	SrcIP        string `parquet:"src_endpoint_ip,dict"`
	SrcPort      int32  `parquet:"src_endpoint_port"`
	SrcIdentity  int64  `parquet:"src_identity,dict"`
	DstName      string `parquet:"dst_endpoint_name,dict"`
	DstIP        string `parquet:"dst_endpoint_ip,dict"`
	DstPort      int32  `parquet:"dst_endpoint_port,dict"`
	DstIdentity  int64  `parquet:"dst_identity,dict"`
	Protocol     int32  `parquet:"connection_info_protocol_num,dict"`
	ProtocolName string `parquet:"connection_info_protocol_name,dict"`
}

// detectionRow is OCSF Detection Finding (2004), flat.
type detectionRow struct {
	Time      int64  `parquet:"time,delta"`
	TimeDT    int64  `parquet:"time_dt,timestamp(millisecond),delta"`
	ClassUID  int32  `parquet:"class_uid,dict"`
	ActionID  int32  `parquet:"action_id,dict"`
	Signature int64  `parquet:"finding_info_analytic_uid,dict"`
	Title     string `parquet:"finding_info_title,dict"`
	Category  string `parquet:"finding_info_analytic_category,dict"`
	Severity  int32  `parquet:"severity,dict"`
	Blocked   bool   `parquet:"blocked"`
	Technique string `parquet:"attacks_technique_uid,dict"`
	Profile   string `parquet:"profile,dict"`
	ends
	origin
}

// cadenceRow is when a flow that goes on was silent. Histograms are JSON: a list for
// the source, and one for the destination.
type cadenceRow struct {
	Time       int64   `parquet:"time,delta"`
	TimeDT     int64   `parquet:"time_dt,timestamp(millisecond),delta"`
	Count      int32   `parquet:"gap_count"`
	Mean       float64 `parquet:"gap_mean"` // seconds
	Deviation  float64 `parquet:"gap_deviation"`
	Alike      float64 `parquet:"gap_regularity"`
	AlikeSizes float64 `parquet:"size_regularity"`
	Gaps       string  `parquet:"gaps"`
	Sizes      string  `parquet:"sizes"`
	Verdict    string  `parquet:"verdict,dict"`
	Decision   int64   `parquet:"firewall_rule_uid,dict"`
	Generation int64   `parquet:"generation,dict"`
	Direction  string  `parquet:"direction,dict"`
	Packets    int64   `parquet:"traffic_packets"`
	Bytes      int64   `parquet:"traffic_bytes"`
	Interface  int64   `parquet:"interface,dict"`
	ends
	origin
}

// greetingRow is what a client of TLS asked for; as OCSF's object tls names it.
type greetingRow struct {
	Time       int64  `parquet:"time,delta"`
	TimeDT     int64  `parquet:"time_dt,timestamp(millisecond),delta"`
	ServerName string `parquet:"tls_sni,dict"`
	ALPN       string `parquet:"tls_alpn,dict"` // JSON: a list
	Hidden     bool   `parquet:"hidden"`
	Ambiguous  bool   `parquet:"ambiguous"`
	Verdict    string `parquet:"verdict,dict"`
	Decision   int64  `parquet:"firewall_rule_uid,dict"`
	Generation int64  `parquet:"generation,dict"`
	Direction  string `parquet:"direction,dict"`
	Interface  int64  `parquet:"interface,dict"`
	ends
	origin
}

// engagementRow is an attacker's contact with a decoy.
type engagementRow struct {
	Time    int64  `parquet:"time,delta"`
	TimeDT  int64  `parquet:"time_dt,timestamp(millisecond),delta"`
	Decoy   string `parquet:"decoy,dict"`
	Session string `parquet:"session,dict"`
	Depth   string `parquet:"depth,dict"`
	Detail  string `parquet:"detail"`
	ends
	origin
}

// rows gathers what is to land, by partition.
type rows struct {
	flows       map[string][]flowRow
	cadences    map[string][]cadenceRow
	greetings   map[string][]greetingRow
	detections  map[string][]detectionRow
	engagements map[string][]engagementRow
	count       int
}

func newRows() *rows {
	return &rows{map[string][]flowRow{}, map[string][]cadenceRow{}, map[string][]greetingRow{}, map[string][]detectionRow{}, map[string][]engagementRow{}, 0}
}

// Event time decides the folder, unless the sender's clock is out of bounds: then
// the log's does, so that a wrong clock cannot strew files over the years.
const (
	clockLate  = 48 * time.Hour
	clockEarly = time.Hour
)

func partition(class string, at, arrived time.Time) string {
	if at.Before(arrived.Add(-clockLate)) || at.After(arrived.Add(clockEarly)) {
		at = arrived
	}
	return "class=" + class + "/" + at.UTC().Format("day=20060102/hour=15")
}

// add takes the records of a batch. A flow record that cannot be read is counted
// by the caller: read is how many could.
func (r *rows) add(b *bocage.Batch, host string, arrived time.Time, name func(bocage.Identity) string) (read int) {
	from := origin{Host: host, Source: b.Source, Boot: b.Boot, Sequence: int64(b.Sequence)}
	var e bocage.FlowEvent
	flows := len(b.Flows) / bocage.FlowEventSize
	for i := range flows {
		if e.UnmarshalBinary(b.Flows[i*bocage.FlowEventSize:(i+1)*bocage.FlowEventSize]) != nil {
			continue
		}
		from.Index = int64(i)
		at := partition(classFlows, e.Time, arrived)
		r.flows[at] = append(r.flows[at], flowOf(&e, from, name))
		read++
	}
	for i := range b.Inspections {
		from.Index = int64(flows + i)
		at := partition(classDetections, b.Inspections[i].Time, arrived)
		r.detections[at] = append(r.detections[at], detectionOf(&b.Inspections[i], from, name))
	}
	for i := range b.Engagements {
		from.Index = int64(flows + len(b.Inspections) + i)
		at := partition(classEngagements, b.Engagements[i].Time, arrived)
		r.engagements[at] = append(r.engagements[at], engagementOf(&b.Engagements[i], from, name))
	}
	read += len(b.Inspections) + len(b.Engagements)
	var c bocage.Cadence
	for i := range len(b.Cadences) / bocage.CadenceSize {
		if c.UnmarshalBinary(b.Cadences[i*bocage.CadenceSize:(i+1)*bocage.CadenceSize]) != nil {
			continue
		}
		from.Index = int64(flows + len(b.Inspections) + len(b.Engagements) + i)
		at := partition(classCadences, c.Flow.Time, arrived)
		r.cadences[at] = append(r.cadences[at], cadenceOf(&c, from, name))
		read++
	}
	for i := range b.Greetings {
		from.Index = int64(flows + len(b.Inspections) + len(b.Engagements) + len(b.Cadences)/bocage.CadenceSize + i)
		at := partition(classGreetings, b.Greetings[i].Flow.Time, arrived)
		r.greetings[at] = append(r.greetings[at], greetingOf(&b.Greetings[i], from, name))
	}
	read += len(b.Greetings)
	r.count += read
	return read
}

func flowOf(e *bocage.FlowEvent, from origin, name func(bocage.Identity) string) flowRow {
	row := flowRow{
		Time: e.Time.UnixMilli(), TimeDT: e.Time.UnixMilli(), ClassUID: 4001,
		Event:   e.Kind.String(),
		SrcName: workload(e.Source, name), SrcPort: int32(e.SourcePort), SrcIdentity: int64(e.Source),
		DstName: workload(e.Destination, name), DstPort: int32(e.DestinationPort), DstIdentity: int64(e.Destination),
		Protocol: int32(e.Protocol), ProtocolName: e.Protocol.String(), Direction: e.Direction.String(),
		Verdict: e.Verdict.String(), Would: e.Would.String(), Reason: e.Reason.String(),
		Decision: int64(e.Decision), Generation: int64(e.Generation), Replied: e.Replied, Closed: e.Closed,
		Packets: int64(e.Packets), Bytes: int64(min(e.Bytes, 1<<62)), Interface: int64(e.Interface),
		Spoken: e.Spoken.String(), origin: from,
	}
	if e.Remote.IsValid() && !e.Remote.IsUnspecified() {
		if e.Direction == bocage.DirectionFrom {
			row.DstIP = e.Remote.String()
		} else {
			row.SrcIP = e.Remote.String()
		}
	}
	switch e.Kind { // OCSF: Open, Close, Refuse, Traffic
	case bocage.EventStart:
		row.ActivityID = 1
	case bocage.EventEnd:
		row.ActivityID = 2
	case bocage.EventRefused:
		row.ActivityID = 5
	default:
		row.ActivityID = 6
	}
	row.ActionID, row.DispositionID = 2, 2 // Denied, Blocked
	switch {
	case e.Verdict.Allowed() && !e.Would.Allowed() && e.Would != bocage.VerdictNone:
		row.ActionID, row.DispositionID = 3, 17 // Observed, Logged
	case e.Verdict.Allowed():
		row.ActionID, row.DispositionID = 1, 1
	}
	return row
}

func workload(id bocage.Identity, name func(bocage.Identity) string) string {
	if id < bocage.IdentityFirst {
		return ""
	}
	return name(id)
}

func endsOf(f *bocage.Flow, source, destination bocage.Identity, name func(bocage.Identity) string) ends {
	e := ends{
		SrcName: workload(source, name), SrcPort: int32(f.SourcePort), SrcIdentity: int64(source),
		DstName: workload(destination, name), DstPort: int32(f.DestinationPort), DstIdentity: int64(destination),
		Protocol: int32(f.Protocol), ProtocolName: f.Protocol.String(),
	}
	if f.Source.IsValid() {
		e.SrcIP = f.Source.String()
	}
	if f.Destination.IsValid() {
		e.DstIP = f.Destination.String()
	}
	return e
}

func detectionOf(e *bocage.InspectionEvent, from origin, name func(bocage.Identity) string) detectionRow {
	row := detectionRow{
		Time: e.Time.UnixMilli(), TimeDT: e.Time.UnixMilli(), ClassUID: 2004, ActionID: 3,
		Signature: int64(e.Signature), Title: e.Title, Category: e.Category, Severity: int32(e.Severity), Blocked: e.Blocked,
		Technique: e.Technique, Profile: e.Profile, ends: endsOf(&e.Flow, e.Source, e.Destination, name), origin: from,
	}
	if e.Blocked {
		row.ActionID = 2
	}
	return row
}

func engagementOf(e *bocage.EngagementEvent, from origin, name func(bocage.Identity) string) engagementRow {
	row := engagementRow{
		Time: e.Time.UnixMilli(), TimeDT: e.Time.UnixMilli(), Decoy: e.Decoy, Session: e.Session, Depth: string(e.Depth),
		Detail: "{}", ends: endsOf(&e.Flow, e.Source, e.Destination, name), origin: from,
	}
	if detail, err := json.Marshal(e.Detail); err == nil && len(e.Detail) > 0 {
		row.Detail = string(detail)
	}
	return row
}

func cadenceOf(c *bocage.Cadence, from origin, name func(bocage.Identity) string) cadenceRow {
	e := &c.Flow
	flow := flowOf(e, from, name)
	count, _ := c.Count()
	mean, deviation := c.Gap()
	row := cadenceRow{
		Time: flow.Time, TimeDT: flow.TimeDT, Count: int32(count), Mean: mean.Seconds(), Deviation: deviation.Seconds(),
		Verdict: flow.Verdict, Decision: flow.Decision, Generation: flow.Generation, Direction: flow.Direction,
		Packets: flow.Packets, Bytes: flow.Bytes, Interface: flow.Interface, origin: from,
		ends: flow.ends(),
	}
	row.Alike, row.AlikeSizes = c.Regularity()
	gaps, _ := json.Marshal(c.Gaps)
	sizes, _ := json.Marshal(c.Sizes)
	row.Gaps, row.Sizes = string(gaps), string(sizes)
	return row
}

func greetingOf(g *bocage.Greeting, from origin, name func(bocage.Identity) string) greetingRow {
	flow := flowOf(&g.Flow, from, name)
	row := greetingRow{
		Time: flow.Time, TimeDT: flow.TimeDT, ServerName: g.ServerName, ALPN: "[]", Hidden: g.Hidden, Ambiguous: g.Ambiguous,
		Verdict: flow.Verdict, Decision: flow.Decision, Generation: flow.Generation, Direction: flow.Direction,
		Interface: flow.Interface, ends: flow.ends(), origin: from,
	}
	if alpn, err := json.Marshal(g.ALPN); err == nil && len(g.ALPN) > 0 {
		row.ALPN = string(alpn)
	}
	return row
}

// ends are the flow's, as other classes have them.
func (r *flowRow) ends() ends {
	return ends{
		SrcName: r.SrcName, SrcIP: r.SrcIP, SrcPort: r.SrcPort, SrcIdentity: r.SrcIdentity,
		DstName: r.DstName, DstIP: r.DstIP, DstPort: r.DstPort, DstIdentity: r.DstIdentity,
		Protocol: r.Protocol, ProtocolName: r.ProtocolName,
	}
}

// Column is one column of a view that questions are asked of.
type Column struct {
	Name string
	Type string // of SQL
	From string // expression over the files' columns
	Doc  string
}

// View is what a question may be asked of.
type View struct {
	Name    string
	Doc     string
	Columns []Column

	class string
	late  string // columns, as SQL, that files of earlier versions do not have
}

// Views lists what can be asked, for people and for `bocage hunt`'s help.
func Views() []View {
	record := Column{"record", "VARCHAR", `concat_ws('/', source, boot, "sequence", "index")`, "the event's name, as incidents list it"}
	host := Column{"host", "VARCHAR", "host", "where the enforcement point stands"}
	moment := []Column{
		{"time", "TIMESTAMP WITH TIME ZONE", "time_dt", "when it happened, by the host's clock"},
		{"time_ms", "BIGINT", `"time"`, "the same in milliseconds since 1970"},
	}
	parties := []Column{
		{"source", "VARCHAR", "src_endpoint_name", "namespace/name of who opened the flow; empty for an address that is no workload"},
		{"source_ip", "VARCHAR", "src_endpoint_ip", "its address, where it is known"},
		{"source_port", "INTEGER", "src_endpoint_port", ""},
		{"source_identity", "BIGINT", "src_identity", "its number; 1 is the world"},
		{"destination", "VARCHAR", "dst_endpoint_name", "namespace/name of the target; empty for an address that is no workload"},
		{"destination_ip", "VARCHAR", "dst_endpoint_ip", "its address, where it is known"},
		{"destination_port", "INTEGER", "dst_endpoint_port", "type*256+code for ICMP"},
		{"destination_identity", "BIGINT", "dst_identity", "its number; 1 is the world"},
		{"protocol", "VARCHAR", "connection_info_protocol_name", "TCP, UDP, ICMP, ..."},
		{"protocol_number", "INTEGER", "connection_info_protocol_num", "as IANA numbers it"},
	}
	point := Column{"interface", "BIGINT", "interface", "index of the enforcement point's interface"}
	decided := []Column{
		{"decision", "BIGINT", "firewall_rule_uid", "number of the decision, as every command writes it; bocage observe names its author as decider"},
		{"generation", "BIGINT", "generation", "of the ruleset that decided (low 32 bits)"},
		{"direction", "VARCHAR", "direction", "from or to the workload behind the enforcement point"},
	}
	done := append([]Column{{"verdict", "VARCHAR", "verdict", "what was done"}}, decided...)
	flows := append(append([]Column{}, moment...), Column{"event", "VARCHAR", "event", "start, end, refused or update"})
	flows = append(append(flows, parties...),
		Column{"verdict", "VARCHAR", "verdict", "what was done: allow, inspect, drop or decoy"},
		Column{"would", "VARCHAR", "would", "what an enforcing scope would have done"},
		Column{"reason", "VARCHAR", "reason", "rule, default-deny, guardrail, quarantine, spoofed, ..."})
	flows = append(append(flows, decided...),
		Column{"replied", "BOOLEAN", "replied", "the destination answered"},
		Column{"closed", "BOOLEAN", "closed", "FIN or RST was seen"},
		Column{"packets", "BIGINT", "traffic_packets", "both directions; of refusals, the attempts"},
		Column{"bytes", "BIGINT", "traffic_bytes", "both directions"},
		Column{"spoken", "VARCHAR", "coalesce(app_protocol_name, '')", "what it was heard to speak: tls, http, postgresql, ...; other; empty if nothing was heard"},
		host, point, record)
	cadences := append(append([]Column{}, moment...),
		Column{"gaps", "INTEGER", "gap_count", "silences of 268 ms and more since the flow began"},
		Column{"gap_mean", "DOUBLE", "gap_mean", "in seconds"},
		Column{"gap_deviation", "DOUBLE", "gap_deviation", "standard deviation, in seconds"},
		Column{"gap_regularity", "DOUBLE", "gap_regularity", "share of gaps within a quarter of the one before: near 1 where a clock speaks"},
		Column{"size_regularity", "DOUBLE", "size_regularity", "the same of what was said between two gaps"},
		Column{"gap_histogram", "VARCHAR", "gaps", "JSON: by who spoke after it, source and destination; by octave from 268 ms"},
		Column{"size_histogram", "VARCHAR", "sizes", "JSON: bursts by who spoke first; below 256 bytes, 4 KiB, 64 KiB, and more"})
	cadences = append(append(append(cadences, parties...), done...),
		Column{"packets", "BIGINT", "traffic_packets", "both directions, since the flow began"},
		Column{"bytes", "BIGINT", "traffic_bytes", "both directions"},
		host, point, record)
	greetings := append(append([]Column{}, moment...),
		Column{"server_name", "VARCHAR", "tls_sni", "whom the client asked for, in lower case; empty if it did not say"},
		Column{"alpn", "VARCHAR", "tls_alpn", "what it offered to speak inside, best first, as a list in JSON: alpn->>0"},
		Column{"hidden", "BOOLEAN", "hidden", "the true name is encrypted, or pretends to be"},
		Column{"ambiguous", "BOOLEAN", "ambiguous", "the same bytes came twice and otherwise, so that no name is told"})
	greetings = append(append(append(greetings, parties...), done...), host, point, record)
	detections := append(append([]Column{}, moment...),
		Column{"signature", "BIGINT", "finding_info_analytic_uid", "the engine's signature id"},
		Column{"title", "VARCHAR", "finding_info_title", ""},
		Column{"category", "VARCHAR", "finding_info_analytic_category", ""},
		Column{"severity", "INTEGER", "severity", "1 (worst) to 4"},
		Column{"blocked", "BOOLEAN", "blocked", ""},
		Column{"technique", "VARCHAR", "attacks_technique_uid", "ATT&CK id, if the signature names one"},
		Column{"profile", "VARCHAR", "profile", "the InspectionProfile"})
	detections = append(append(detections, parties...), host, record)
	engagements := append(append([]Column{}, moment...),
		Column{"decoy", "VARCHAR", "decoy", "the Decoy's name"},
		Column{"session", "VARCHAR", "session", "the same for every event of one contact"},
		Column{"depth", "VARCHAR", "depth", "touch, probe, login or command"},
		Column{"detail", "VARCHAR", "detail", "what was learned, as JSON: detail->>'user'"})
	engagements = append(append(engagements, parties...), host, record)
	return []View{
		{"flows", "what enforcement points reported of flows", flows, classFlows, "CAST(NULL AS VARCHAR) AS app_protocol_name"},
		{"cadences", "when flows that go on were silent; the last of a flow stands", cadences, classCadences, ""},
		{"greetings", "what clients of TLS asked for, before anything was encrypted", greetings, classGreetings, ""},
		{"detections", "what the inspection engine found", detections, classDetections, ""},
		{"engagements", "contacts with decoys", engagements, classEngagements, ""},
	}
}

// sql is the statement that makes the view over files; none make it empty.
func (v View) sql(files []string) string {
	list := ""
	for i, c := range v.Columns {
		if i > 0 {
			list += ", "
		}
		if len(files) == 0 {
			list += fmt.Sprintf("CAST(NULL AS %s) AS %s", c.Type, c.Name)
		} else {
			list += fmt.Sprintf("CAST(%s AS %s) AS %s", c.From, c.Type, c.Name)
		}
	}
	if len(files) == 0 {
		return fmt.Sprintf("CREATE VIEW %s AS SELECT %s WHERE false", v.Name, list)
	}
	from := ""
	for i, f := range files {
		if i > 0 {
			from += ", "
		}
		from += quote(f)
	}
	from = fmt.Sprintf("read_parquet([%s], hive_partitioning = false, union_by_name = true)", from)
	if v.late != "" {
		from = fmt.Sprintf("(SELECT * FROM %s UNION ALL BY NAME SELECT %s WHERE false)", from, v.late)
	}
	return fmt.Sprintf("CREATE VIEW %s AS SELECT %s FROM %s", v.Name, list, from)
}
