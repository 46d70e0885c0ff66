package bocage

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// TestNetworkPolicyValidate names, for each policy, the fields that are refused.
func TestNetworkPolicyValidate(t *testing.T) {
	tests := []struct {
		name, spec string
		fields     []string
	}{
		{"nothing", `{}`, nil},
		{"empty lists", `{"podSelector":{"matchLabels":{"a":"b"}},"ingress":[]}`, nil},
		{"a rule of empty lists", `{"ingress":[{"from":[],"ports":[]}]}`, nil},
		{"ports of every form", `{"ingress":[{"ports":[{"port":80},{"protocol":"TCP"},{"port":443,"protocol":"TCP"},{"port":"dns","protocol":"UDP"},{"port":7777,"protocol":"SCTP"}]}]}`, nil},
		{"a pod selector", `{"ingress":[{"from":[{"podSelector":{"matchLabels":{"c":"d"}}}]}]}`, nil},
		{"a namespace selector", `{"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"c":"d"}}}]}]}`, nil},
		{"both selectors", `{"egress":[{"to":[{"podSelector":{},"namespaceSelector":{}}]}]}`, nil},
		{"a block", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.0.0/16","except":["192.168.3.0/24","192.168.4.0/24"]}}]}]}`, nil},
		{"a block of IPv6", `{"egress":[{"to":[{"ipBlock":{"cidr":"fd00:192:168::/48","except":["fd00:192:168:3::/64"]}}]}]}`, nil},
		{"bits beyond the length", `{"ingress":[{"from":[{"ipBlock":{"cidr":"10.244.1.1/4","except":["10.244.1.1/24"]}}]}]}`, nil},
		{"IPv6 that is not canonical", `{"egress":[{"to":[{"ipBlock":{"cidr":"2001:0DB8:0::0/32"}}]}]}`, nil},
		{"egress with policy types", `{"egress":[{"ports":[{"port":32000,"endPort":32768}]}],"policyTypes":["Egress"]}`, nil},
		{"both policy types", `{"policyTypes":["Ingress","Egress"]}`, nil},
		{"one policy type twice", `{"policyTypes":["Ingress","Ingress"]}`, nil},
		{"a range of one port", `{"egress":[{"ports":[{"port":32000,"endPort":32000}]}]}`, nil},
		{"expressions", `{"podSelector":{"matchExpressions":[{"key":"a","operator":"In","values":["x",""]},{"key":"b.example/c","operator":"NotIn","values":["y"]},{"key":"d","operator":"Exists"},{"key":"e","operator":"DoesNotExist"}]}}`, nil},

		{"a peer of nothing", `{"ingress":[{"from":[{}]}]}`, []string{"spec.ingress[0].from[0]"}},
		{"a block and a selector", `{"ingress":[{"from":[{"podSelector":{},"ipBlock":{"cidr":"192.168.0.0/16"}}]}]}`, []string{"spec.ingress[0].from[0]"}},
		{"a block and a namespace selector", `{"egress":[{"to":[{"namespaceSelector":{},"ipBlock":{"cidr":"192.168.0.0/16"}}]}]}`, []string{"spec.egress[0].to[0]"}},
		{"a bad label in podSelector", `{"podSelector":{"matchLabels":{"NoUppercaseOrSpecialCharsLike=Equals":"b"}}}`, []string{"spec.podSelector.matchLabels[NoUppercaseOrSpecialCharsLike=Equals]"}},
		{"a bad label of a peer", `{"ingress":[{"from":[{"podSelector":{"matchLabels":{"a=b":"b"}}}]}]}`, []string{"spec.ingress[0].from[0].podSelector.matchLabels[a=b]"}},
		{"a bad label of a peer's namespace", `{"egress":[{"to":[{"namespaceSelector":{"matchLabels":{"a":"b c"}}}]}]}`, []string{"spec.egress[0].to[0].namespaceSelector.matchLabels[a]"}},
		{"a bad value in an expression", `{"podSelector":{"matchExpressions":[{"key":"a","operator":"In","values":["b c"]}]}}`, []string{"spec.podSelector.matchExpressions[0].values[0]"}},
		{"In nothing", `{"podSelector":{"matchExpressions":[{"key":"a","operator":"In"}]}}`, []string{"spec.podSelector.matchExpressions[0].values"}},
		{"Exists with values", `{"podSelector":{"matchExpressions":[{"key":"a","operator":"Exists","values":["b"]}]}}`, []string{"spec.podSelector.matchExpressions[0].values"}},
		{"an unknown operator", `{"podSelector":{"matchExpressions":[{"key":"a","operator":"in","values":["b"]}]}}`, []string{"spec.podSelector.matchExpressions[0].operator"}},
		{"ICMP", `{"ingress":[{"ports":[{"protocol":"ICMP","port":80}]}]}`, []string{"spec.ingress[0].ports[0].protocol"}},
		{"tcp in small letters", `{"ingress":[{"ports":[{"protocol":"tcp"}]}]}`, []string{"spec.ingress[0].ports[0].protocol"}},
		{"a large port", `{"ingress":[{"ports":[{"port":123456789}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"port 0", `{"ingress":[{"ports":[{"port":0}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"a negative port", `{"egress":[{"ports":[{"port":-1}]}]}`, []string{"spec.egress[0].ports[0].port"}},
		{"no name", `{"egress":[{"ports":[{"port":""}]}]}`, []string{"spec.egress[0].ports[0].port"}},
		{"a number in quotes", `{"egress":[{"ports":[{"port":"80"}]}]}`, []string{"spec.egress[0].ports[0].port"}},
		{"odd characters", `{"ingress":[{"ports":[{"port":"!@#$"}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"a name in capitals", `{"ingress":[{"ports":[{"port":"Web"}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"a long name", `{"ingress":[{"ports":[{"port":"sixteen-letters1"}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"two hyphens", `{"ingress":[{"ports":[{"port":"a--b"}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"a hyphen last", `{"ingress":[{"ports":[{"port":"ab-"}]}]}`, []string{"spec.ingress[0].ports[0].port"}},
		{"a range without its first port", `{"egress":[{"ports":[{"endPort":32768}]}]}`, []string{"spec.egress[0].ports[0].endPort"}},
		{"a range from a name", `{"egress":[{"ports":[{"port":"dns","endPort":32768}]}]}`, []string{"spec.egress[0].ports[0].endPort"}},
		{"a range backwards", `{"egress":[{"ports":[{"port":30000,"endPort":20000}]}]}`, []string{"spec.egress[0].ports[0].endPort"}},
		{"a range beyond", `{"egress":[{"ports":[{"port":30000,"endPort":65536}]}]}`, []string{"spec.egress[0].ports[0].endPort"}},
		{"no CIDR", `{"ingress":[{"from":[{"ipBlock":{}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.cidr"}},
		{"an address for a CIDR", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.0.0"}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.cidr"}},
		{"leading zeros", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.000.000/16"}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.cidr"}},
		{"IPv4 written as IPv6", `{"ingress":[{"from":[{"ipBlock":{"cidr":"::ffff:10.0.0.0/104"}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.cidr"}},
		{"an exception that is no CIDR", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.8.0/24","except":["192.168.8.7"]}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.except[0]"}},
		{"an exception outside", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.8.0/24","except":["192.168.9.1/32"]}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.except[0]"}},
		{"an exception as large as the block", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.8.0/24","except":["192.168.8.0/24"]}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.except[0]"}},
		{"an exception larger than the block", `{"ingress":[{"from":[{"ipBlock":{"cidr":"192.168.0.0/24","except":["192.168.0.0/16"]}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.except[0]"}},
		{"an exception of the other family", `{"ingress":[{"from":[{"ipBlock":{"cidr":"0.0.0.0/0","except":["fd00::/8"]}}]}]}`, []string{"spec.ingress[0].from[0].ipBlock.except[0]"}},
		{"an unknown policy type", `{"policyTypes":["Ingress","bar"]}`, []string{"spec.policyTypes[1]"}},
		{"three policy types", `{"policyTypes":["Ingress","Egress","Ingress"]}`, []string{"spec.policyTypes"}},
		{"everything at once", `{"policyTypes":["x"],"ingress":[{"ports":[{"port":0,"protocol":"x"}],"from":[{}]}]}`,
			[]string{"spec.ingress[0].ports[0].protocol", "spec.ingress[0].ports[0].port", "spec.ingress[0].from[0]", "spec.policyTypes[0]"}},
	}
	for _, test := range tests {
		p := NetworkPolicy{ObjectMeta: ObjectMeta{Namespace: "bar", Name: "foo"}}
		if err := json.Unmarshal([]byte(test.spec), &p.Spec); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		checkFields(t, test.name, p.Validate(), test.fields)
	}
}

func TestNetworkPolicyValidateMeta(t *testing.T) {
	for _, test := range []struct {
		name   string
		meta   ObjectMeta
		fields []string
	}{
		{"fine", ObjectMeta{Namespace: "bar", Name: "foo.bar-1", Annotations: map[string]string{"Example.com/A": "any\ntext"}}, nil},
		{"no namespace", ObjectMeta{Name: "foo"}, []string{"metadata.namespace"}},
		{"capitals", ObjectMeta{Namespace: "bar", Name: "Foo"}, []string{"metadata.name"}},
		{"a long name", ObjectMeta{Namespace: "bar", Name: strings.Repeat("a", 254)}, []string{"metadata.name"}},
		{"a bad label", ObjectMeta{Namespace: "bar", Name: "foo", Labels: map[string]string{"a": "-"}}, []string{"metadata.labels[a]"}},
		{"a bad annotation", ObjectMeta{Namespace: "bar", Name: "foo", Annotations: map[string]string{"a b": "c"}}, []string{"metadata.annotations[a b]"}},
		{"large annotations", ObjectMeta{Namespace: "bar", Name: "foo", Annotations: map[string]string{"a": strings.Repeat("x", 256<<10)}}, []string{"metadata.annotations"}},
	} {
		p := &NetworkPolicy{ObjectMeta: test.meta}
		checkFields(t, test.name, append(p.Validate(), ValidateAnnotations(p.Annotations)...), test.fields)
	}
}

// TestStoredAnnotations: what a policy was declared with before does not make it one
// that is left out.
func TestStoredAnnotations(t *testing.T) {
	meta := ObjectMeta{Namespace: "bar", Name: "foo", Annotations: map[string]string{"Owner Team": "shop"}}
	checkFields(t, "NetworkPolicy", (&NetworkPolicy{ObjectMeta: meta}).Validate(), nil)
	meta.Namespace = ""
	priority := int32(1)
	p := &ClusterNetworkPolicy{ObjectMeta: meta, Spec: ClusterNetworkPolicySpec{Tier: TierAdmin, Priority: &priority, Subject: ClusterNetworkPolicySubject{Namespaces: &Selector{}}}}
	checkFields(t, "ClusterNetworkPolicy", p.Validate(), nil)
}

func TestClusterNetworkPolicyValidate(t *testing.T) {
	whole := `{"tier":"Admin","priority":0,"subject":{"namespaces":{}}`
	egress := func(rule string) string { return whole + `,"egress":[` + rule + `]}` }
	for _, test := range []struct {
		name, spec string
		fields     []string
	}{
		{"no rules", whole + `}`, nil},
		{"the highest priority number", `{"tier":"Baseline","priority":1000,"subject":{"pods":{"podSelector":{}}}}`, nil},
		{"every peer", egress(`{"action":"Accept","to":[{"namespaces":{}},{"pods":{"namespaceSelector":{},"podSelector":{}}},{"nodes":{}},{"networks":["10.0.0.1/8"]},{"domainNames":["*.example.org"]}]}`), nil},
		{"nothing", `{}`, []string{"spec.tier", "spec.priority", "spec.subject"}},
		{"a high priority", `{"tier":"Admin","priority":1001,"subject":{"namespaces":{}}}`, []string{"spec.priority"}},
		{"two subjects", `{"tier":"Admin","priority":1,"subject":{"namespaces":{},"pods":{"podSelector":{}}}}`, []string{"spec.subject"}},
		{"no pod selector", `{"tier":"Admin","priority":1,"subject":{"pods":{"namespaceSelector":{}}}}`, []string{"spec.subject.pods.podSelector"}},
		{"an old action", egress(`{"action":"Allow","to":[{"namespaces":{}}]}`), []string{"spec.egress[0].action"}},
		{"no peers", egress(`{"action":"Deny"}`), []string{"spec.egress[0].to"}},
		{"a peer of nothing", egress(`{"action":"Deny","to":[{}]}`), []string{"spec.egress[0].to[0]"}},
		{"a peer of two parts", egress(`{"action":"Deny","to":[{"namespaces":{},"nodes":{}}]}`), []string{"spec.egress[0].to[0]"}},
		{"no protocols", egress(`{"action":"Deny","to":[{"namespaces":{}}],"protocols":[]}`), []string{"spec.egress[0].protocols"}},
		{"a protocol that says nothing", egress(`{"action":"Deny","to":[{"namespaces":{}}],"protocols":[{"tcp":{}}]}`), []string{"spec.egress[0].protocols[0].tcp"}},
		{"a range of one port", egress(`{"action":"Deny","to":[{"namespaces":{}}],"protocols":[{"udp":{"destinationPort":{"range":{"start":80,"end":80}}}}]}`), []string{"spec.egress[0].protocols[0].udp.destinationPort.range"}},
		{"a number and a range", egress(`{"action":"Deny","to":[{"namespaces":{}}],"protocols":[{"sctp":{"destinationPort":{"number":1,"range":{"start":80,"end":81}}}}]}`), []string{"spec.egress[0].protocols[0].sctp.destinationPort"}},
		{"port 0", egress(`{"action":"Deny","to":[{"namespaces":{}}],"protocols":[{"tcp":{"destinationPort":{"number":0}}}]}`), []string{"spec.egress[0].protocols[0].tcp.destinationPort.number"}},
		{"a network twice", egress(`{"action":"Deny","to":[{"networks":["10.0.0.0/8","10.0.0.0/8"]}]}`), []string{"spec.egress[0].to[0].networks[1]"}},
		{"no networks", egress(`{"action":"Deny","to":[{"networks":[]}]}`), []string{"spec.egress[0].to[0].networks"}},
		{"named ports of nodes", egress(`{"action":"Deny","to":[{"nodes":{}}],"protocols":[{"destinationNamedPort":"web"}]}`), []string{"spec.egress[0].to[0]"}},
		{"a denied domain name", egress(`{"action":"Deny","to":[{"domainNames":["example.org"]}]}`), []string{"spec.egress[0].to[0].domainNames"}},
		{"half a domain name", egress(`{"action":"Accept","to":[{"domainNames":["ex*.org"]}]}`), []string{"spec.egress[0].to[0].domainNames[0]"}},
		{"a long name of a rule", egress(`{"action":"Deny","name":"` + strings.Repeat("é", 101) + `","to":[{"namespaces":{}}]}`), []string{"spec.egress[0].name"}},
		{"an unreadable selector", egress(`{"action":"Deny","to":[{"namespaces":{"matchExpressions":[{"key":"a","operator":"notIn","values":["b"]}]}}]}`), []string{"spec.egress[0].to[0].namespaces.matchExpressions[0].operator"}},
	} {
		p := ClusterNetworkPolicy{ObjectMeta: ObjectMeta{Name: "foo"}}
		if err := json.Unmarshal([]byte(test.spec), &p.Spec); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		checkFields(t, test.name, p.Validate(), test.fields)
	}
	many := ClusterNetworkPolicy{ObjectMeta: ObjectMeta{Name: "foo", Namespace: "bar"}}
	priority := int32(1)
	many.Spec = ClusterNetworkPolicySpec{Tier: TierAdmin, Priority: &priority, Subject: ClusterNetworkPolicySubject{Namespaces: &Selector{}}}
	for range 26 {
		many.Spec.Ingress = append(many.Spec.Ingress, ClusterNetworkPolicyIngressRule{Action: ActionPass, From: []ClusterNetworkPolicyIngressPeer{{Namespaces: &Selector{}}}})
	}
	checkFields(t, "26 rules in a namespace", many.Validate(), []string{"metadata.namespace", "spec.ingress"})
}

func checkFields(t *testing.T, name string, faults Faults, want []string) {
	t.Helper()
	var got []string
	for _, f := range faults {
		got = append(got, f.Field)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q are refused, not %q:\n%v", name, got, want, faults)
	}
}

// TestNetworkPolicyDefault: what is left out is written down once, and what is given
// stays.
func TestNetworkPolicyDefault(t *testing.T) {
	for _, test := range []struct{ spec, want string }{
		{`{}`, `{"podSelector":{},"policyTypes":["Ingress"]}`},
		{`{"egress":[]}`, `{"podSelector":{},"policyTypes":["Ingress"]}`},
		{`{"policyTypes":[],"egress":[{}]}`, `{"podSelector":{},"egress":[{}],"policyTypes":["Ingress","Egress"]}`},
		{`{"policyTypes":["Egress"],"ingress":[{}]}`, `{"podSelector":{},"ingress":[{}],"policyTypes":["Egress"]}`},
		{`{"ingress":[{"ports":[{"port":80},{"port":"dns","protocol":"UDP"},{}]}],"egress":[{"ports":[{"port":1,"endPort":2}]},{"to":[{"podSelector":{}}]}]}`,
			`{"podSelector":{},"ingress":[{"ports":[{"protocol":"TCP","port":80},{"protocol":"UDP","port":"dns"},{"protocol":"TCP"}]}],` +
				`"egress":[{"ports":[{"protocol":"TCP","port":1,"endPort":2}]},{"to":[{"podSelector":{}}]}],"policyTypes":["Ingress","Egress"]}`},
	} {
		var p NetworkPolicy
		if err := json.Unmarshal([]byte(test.spec), &p.Spec); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			p.Default()
			if is, err := json.Marshal(p.Spec); err != nil || string(is) != test.want {
				t.Errorf("%s: %s, want %s: %v", test.spec, is, test.want, err)
			}
		}
	}
}
