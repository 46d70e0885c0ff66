package container

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const id = "61abba4a1cf050c14ef43caf86ea28d0cb81fb3a359fa3f2753091382a44f662"

func TestParseContainer(t *testing.T) {
	c, err := parseContainer([]byte(`{"Id":"` + id + `","Name":"/web","Image":"sha256:5617","State":{"Status":"running","Running":true,"Pid":13},
		"Config":{"Image":"shop/web:1","Labels":{"app":"web","":"no","bad":"a\u001bb"}},"HostConfig":{"NetworkMode":"bridge"},
		"NetworkSettings":{"SandboxKey":"/run/docker/netns/1","Networks":{
			"b":{"NetworkID":"n2","MacAddress":"02:42:AC:11:00:02","IPAddress":"172.17.0.2","GlobalIPv6Address":"fd00::2"},
			"a":{"MacAddress":"nonsense","IPAddress":"0.0.0.0","GlobalIPv6Address":"fe80::1%eth0"},"c":null}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != id || c.Name != "web" || c.Image != "shop/web:1" || c.ImageID != "sha256:5617" || !c.Running || c.Pid != 13 || c.Sandbox != "/run/docker/netns/1" || c.Mode != "bridge" {
		t.Errorf("%+v", c)
	}
	if !reflect.DeepEqual(c.Labels, map[string]string{"app": "web"}) {
		t.Errorf("labels %q", c.Labels)
	}
	if len(c.Networks) != 2 || c.Networks[0].Network != "a" || c.Networks[0].MAC != "" || len(c.Networks[0].Addresses) != 0 ||
		c.Networks[1].MAC != "02:42:ac:11:00:02" || len(c.Networks[1].Addresses) != 2 {
		t.Errorf("networks %+v", c.Networks)
	}
	if c := (Container{Mode: "container:" + id}); c.Shares() != id || (&Container{Mode: "container:"}).Shares() != "" {
		t.Error("who shares whose network")
	}
}

func TestParseContainerRefuses(t *testing.T) {
	networks := map[string]any{}
	for i := range mostAttached + 1 {
		networks[strings.Repeat("n", i+1)] = map[string]string{}
	}
	many, _ := json.Marshal(map[string]any{"Id": id, "NetworkSettings": map[string]any{"Networks": networks}})
	for name, text := range map[string]string{
		"nothing": "", "no object": "[]", "no ID": `{}`, "a path for an ID": `{"Id":"../../images/json"}`,
		"a query in an ID": `{"Id":"abcdefabcdef?x=1"}`, "a name with a line's end": `{"Id":"` + id + `","Name":"a\nb"}`,
		"a huge name": `{"Id":"` + id + `","Name":"` + strings.Repeat("x", mostText+1) + `"}`,
		"two values":  `{"Id":"` + id + `"}{}`, "ended": `{"Id":"` + id + `","State":{"Status":"exited"}}`,
		"a number for a name": `{"Id":"` + id + `","Name":7}`, "too many networks": string(many),
	} {
		if c, err := parseContainer([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestParseEvent(t *testing.T) {
	for text, want := range map[string]event{
		`{"Type":"container","Action":"start","Actor":{"ID":"` + id + `"}}`:                                           {container: id},
		`{"Type":"container","Action":"exec_start: sh","Actor":{"ID":"` + id + `"}}`:                                  {},
		`{"Type":"network","Action":"connect","Actor":{"ID":"5df0af07a448","Attributes":{"container":"` + id + `"}}}`: {container: id},
		`{"Type":"network","Action":"connect","Actor":{"ID":"` + id + `"}}`:                                           {container: id},
		`{"Type":"network","Action":"create","Actor":{"ID":"5df0af07a448"}}`:                                          {networks: true},
		`{"Type":"pod","Action":"start","Actor":{"ID":"` + id + `"}}`:                                                 {pods: true},
		`{"Type":"image","Action":"pull","Actor":{"ID":""}}`:                                                          {},
	} {
		if got, err := parseEvent([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "null null", `{"Type":"container","Action":"start","Actor":{"ID":"../x"}}`, `{"Type":7}`} {
		if e, err := parseEvent([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, e)
		}
	}
}

func TestParseNetworks(t *testing.T) {
	list, err := parseNetworks([]byte(`[{"Id":"` + id + `","Name":"n2","Driver":"bridge","Labels":{"a":"b"}},
		{"Id":"` + id + `","Name":"bridge","Driver":"bridge","Options":{"com.docker.network.bridge.name":"docker0"}},
		{"Id":"x","Name":"evil","Driver":"bridge","Options":{"com.docker.network.bridge.name":"../../etc"}},{"Name":"mac","Driver":"macvlan"},{"Name":""}]`))
	if err != nil || len(list) != 4 || list[0].Bridge != "docker0" || list[1].Bridge != "" || list[2].Bridge != "" || list[3].Bridge != "br-61abba4a1cf0" {
		t.Errorf("%+v, %v", list, err)
	}
	list, err = parsePodmanNetworks([]byte(`[{"name":"p","id":"` + id + `","driver":"bridge","network_interface":"podman1"},{"name":"m","driver":"macvlan","network_interface":"eth0"}]`))
	if err != nil || len(list) != 2 || list[1].Bridge != "podman1" || list[0].Bridge != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// Whatever a socket answers, nothing but texts that can be shown and IDs that can
// be part of a path come of it.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Id":"` + id + `","Name":"/web","Config":{"Labels":{"a":"b"}},"NetworkSettings":{"Networks":{"b":{"IPAddress":"10.0.0.1"}}}}`))
	f.Add([]byte(`[{"Id":"` + id + `","Name":"n2","Driver":"bridge","Labels":{"a":"b"}}]`))
	f.Add([]byte(`{"Type":"network","Action":"connect","Actor":{"ID":"5df0af07a448","Attributes":{"container":"` + id + `"}}}`))
	f.Add([]byte(`{"Components":[{"Name":"Podman Engine"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseContainer(data); err == nil {
			if !isID(c.ID) || !plain(c.Name) || !plain(c.Image) || c.Sandbox != "" && c.Sandbox[0] != '/' || len(c.Networks) > mostAttached || c.Pid < 0 {
				t.Errorf("%+v", c)
			}
			for k, v := range c.Labels {
				if k == "" || !plain(k) || !plain(v) {
					t.Errorf("label %q=%q", k, v)
				}
			}
			for _, n := range c.Networks {
				for _, a := range n.Addresses {
					if !a.IsValid() || a.IsLoopback() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" {
						t.Errorf("address %v", a)
					}
				}
			}
		}
		if ids, _, err := parseList(data); err == nil {
			for _, i := range ids {
				if !isID(i) {
					t.Errorf("ID %q", i)
				}
			}
		}
		for _, parse := range []func([]byte) ([]Network, error){parseNetworks, parsePodmanNetworks} {
			if list, err := parse(data); err == nil {
				for _, n := range list {
					if n.Bridge != "" && !isLinkName(n.Bridge) || !plain(n.Name) {
						t.Errorf("%+v", n)
					}
				}
			}
		}
		if e, err := parseEvent(data); err == nil && e.container != "" && !isID(e.container) {
			t.Errorf("%+v", e)
		}
		parsePods(data)
		parseVersion(data)
	})
}
