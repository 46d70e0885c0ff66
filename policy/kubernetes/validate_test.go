package kubernetes_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// FuzzPolicies reads anything as policies: whatever is not refused can be
// evaluated.
func FuzzPolicies(f *testing.F) {
	f.Add([]byte(`{"podSelector":{"matchLabels":{"pod":"a"}},"ingress":[{"ports":[{"port":"web","endPort":3}],"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{}]}]}`))
	f.Add([]byte(`{"tier":"Admin","priority":3,"subject":{"pods":{}},"egress":[{"action":"Deny","to":[{"networks":["::/0"]},{"nodes":{}},{"domainNames":["a.b"]}],"protocols":[{"tcp":{"destinationPort":{}}},{"destinationNamedPort":"web"}]}]}`))
	f.Add([]byte(`{"tier":"Baseline","priority":0,"subject":{"namespaces":{}},"ingress":[{"action":"Accept","from":[{"pods":{"podSelector":{}}}],"protocols":[{"sctp":{"destinationPort":{"range":{"start":1,"end":2}}}}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		np := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "p"}}
		cnp := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "p"}}
		_ = json.Unmarshal(data, &np.Spec)
		_ = json.Unmarshal(data, &cnp.Spec)
		a := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "a", Labels: map[string]string{"pod": "a"}},
			Spec: bocage.WorkloadSpec{Host: "h", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Ports: []bocage.NamedPort{{Name: "web", Port: 80}}}}
		host := &bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h"}, Spec: bocage.HostSpec{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}
		e := kubernetes.NewEvaluator(kubernetes.Objects{Workloads: []*bocage.Workload{a}, Hosts: []*bocage.Host{host},
			NetworkPolicies: []*bocage.NetworkPolicy{np}, ClusterNetworkPolicies: []*bocage.ClusterNetworkPolicy{cnp}})
		in := e.Evaluate(kubernetes.Flow{Source: host.Spec.Addresses[0], Destination: a.Spec.Addresses[0], To: a, Protocol: bocage.ProtocolTCP, Port: 80})
		out := e.Evaluate(kubernetes.Flow{Source: a.Spec.Addresses[0], Destination: host.Spec.Addresses[0], From: a, Protocol: bocage.ProtocolUDP, Port: 80})
		for _, r := range []kubernetes.Result{in, out} {
			if r.Allows && (r.Refuses || len(r.Withheld) > 0) || r.Refuses && len(r.By) == 0 {
				t.Errorf("%+v contradicts itself", r)
			}
		}
		if len(np.Validate()) > 0 && len(cnp.Validate()) > 0 && (in.Allows || in.Refuses || out.Allows || out.Refuses) {
			t.Errorf("refused policies decide: %+v, %+v", in, out)
		}
	})
}

// FuzzRead reads anything as a Pod and as a Node: what comes of it without a
// fault is a valid workload or host, what is not known yet apart.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"kind":"Pod","metadata":{"name":"a","namespace":"x","labels":{"pod":"a"}},"spec":{"nodeName":"n","containers":[{"ports":[{"name":"web","containerPort":80}]}],"initContainers":[{"restartPolicy":"Always","ports":[{"name":"mesh","containerPort":15001,"protocol":"TCP"}]}]},"status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}`))
	f.Add([]byte(`{"kind":"Node","metadata":{"name":"n"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"Hostname","address":"n"}]}}`))
	f.Add([]byte(`{"metadata":{"name":"a"},"status":{"podIP":"::ffff:10.0.0.1%eth0"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pod, faults := kubernetes.ReadPod(data); len(faults) == 0 {
			for _, a := range pod.Spec.Addresses {
				if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
					t.Errorf("%v is no address of a workload", a)
				}
			}
			if pod.Name == "" || pod.Namespace == "" || pod.Spec.Orchestrator != bocage.OrchestratorKubernetes {
				t.Errorf("%+v is no Pod", pod.Workload)
			}
		}
		if host, faults := kubernetes.ReadNode(data); len(faults) == 0 && (host.Name == "" || host.Namespace != "") {
			t.Errorf("%+v is no Node", host)
		}
	})
}

func TestReadPod(t *testing.T) {
	pod, faults := kubernetes.ReadPod([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"app":"a"},"annotations":{"bocage.dev/source":"f.yaml:3","other":"x"}},
		"spec":{"nodeName":"n1","hostNetwork":true,"containers":[{"name":"c","ports":[{"name":"web","containerPort":8080},{"containerPort":1},{"name":"dns","containerPort":53,"protocol":"UDP"}]}],
		"initContainers":[{"name":"once","ports":[{"name":"gone","containerPort":2}]},{"name":"sidecar","restartPolicy":"Always","ports":[{"name":"mesh","containerPort":15001}]}]},
		"status":{"phase":"Succeeded","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}`))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	got, _ := json.Marshal(pod.Workload)
	want := `{"apiVersion":"bocage.dev/v1","kind":"Workload","metadata":{"name":"a","namespace":"default","labels":{"app":"a"},"annotations":{"bocage.dev/source":"f.yaml:3"}},` +
		`"spec":{"host":"n1","addresses":["10.0.0.1","fd00::1"],"ports":[{"name":"web","port":8080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"},{"name":"mesh","port":15001,"protocol":"TCP"}],"orchestrator":"kubernetes"}}`
	if string(got) != want || !pod.HostNetwork || !pod.Ended {
		t.Errorf("read %s\nwant %s", got, want)
	}
	for text, field := range map[string]string{
		`{"kind":"Pod"}`: "metadata.name", `{"kind":"Node","metadata":{"name":"a"}}`: "kind", `[]`: "",
		`{"metadata":{"name":"a"},"status":{"podIPs":[{"ip":"10.0.0"}]}}`:                                                   "status.podIPs[0].ip",
		`{"metadata":{"name":"a"},"spec":{"containers":[{"ports":[{"name":"a","containerPort":70000}]}]}}`:                  "spec.containers[0].ports[0].containerPort",
		`{"metadata":{"name":"a"},"spec":{"containers":[{},{"ports":[{"name":"a","containerPort":7,"protocol":"ICMP"}]}]}}`: "spec.containers[1].ports[0].protocol",
		`{"metadata":{"name":"a"},"spec":{"initContainers":[{"restartPolicy":"Always","ports":[{"name":"a"}]}]}}`:           "spec.initContainers[0].ports[0].containerPort",
	} {
		if _, faults := kubernetes.ReadPod([]byte(text)); len(faults) != 1 || faults[0].Field != field {
			t.Errorf("%s: %v, want a fault of %q", text, faults, field)
		}
	}
}

func TestReadNode(t *testing.T) {
	host, faults := kubernetes.ReadNode([]byte(`{"kind":"Node","metadata":{"name":"n","labels":{"a":"b"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"ExternalIP","address":"2001:db8::1"},{"type":"Hostname","address":"n"}]}}`))
	got, _ := json.Marshal(host.Spec)
	if len(faults) > 0 || string(got) != `{"addresses":["192.0.2.1","2001:db8::1"]}` || host.Labels["a"] != "b" {
		t.Errorf("read %s of %v, %v", got, host.Labels, faults)
	}
}
