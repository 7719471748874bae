package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// programMesh is a host full of servers as Debian has them. They are called from a
// host of the mesh by name, through two proxies with mTLS between them, and from
// one outside by address, in plaintext through the servers' proxy alone.
type programMesh struct {
	*meshlab.Mesh
	front, data, outside *meshlab.Node
	dir                  string // of the servers' files; theirs to write
	key, cert            string
	ws                   *meshlab.Process

	// These were connected first and say nothing before the end.
	silent map[string]*net.TCPConn
}

// nobody is the user of servers that refuse to be root.
const nobody = 65534

func newProgramMesh(t *testing.T) *programMesh {
	if !meshlab.OtherUsers() {
		t.Skip("PostgreSQL and sshd refuse to run where root is the only user")
	}
	m := &programMesh{Mesh: start(t), silent: map[string]*net.TCPConn{}}
	m.data, m.outside = bare(t, m.Mesh, "data"), bare(t, m.Mesh, "outside")
	m.dir = filepath.Join(m.Dir, "servers")
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.certificate(t)
	m.startServers(t)
	enter(t, m.Mesh, m.data, meshlab.Workload{Host: "data", Service: "data", Ports: []string{
		"8001", "5432/postgres", "3306/mysql", "6379/redis", "22/ssh", "21/ftp", "2526/smtp", "8443/https", "8444/tcp",
		fmt.Sprintf("%d/kubernetes.io/ws", webSocketPort), "9001/tcp", "2525/tcp",
	}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	r := allMethods("*", "data")
	r.SourceNamespace = "*"
	if _, err := m.API.AddSecurityRule(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	set(t, m.Mesh, `{"mtls_mode":"permissive"}`)
	m.ready(t)
	return m
}

// ready waits until both ways lead to the servers.
func (m *programMesh) ready(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		from *meshlab.Node
		host string
	}{{m.front, "data"}, {m.outside, m.data.Addr4().String()}} {
		await(t, m.Mesh, "the rules", func() error {
			if out, err := c.from.Output(t.Context(), "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://"+c.host+":8001/"); out != "200" {
				return fmt.Errorf("%s, %w", out, err)
			}
			return nil
		})
	}
}

// fromBoth runs a story from the mesh, by name, and from outside, by address.
func (m *programMesh) fromBoth(t *testing.T, name string, f func(t *testing.T, from *meshlab.Node, host string)) {
	t.Run(name+" by two proxies", func(t *testing.T) { f(t, m.front, "data") })
	t.Run(name+" by one proxy", func(t *testing.T) { f(t, m.outside, m.data.Addr4().String()) })
}

// open waits until a proxy counts so many connections as open.
func (m *programMesh) open(t *testing.T, n *meshlab.Node, labels string, want int) {
	t.Helper()
	line := fmt.Sprintf("weir_connections_open{%s} %d\n", labels, want)
	await(t, m.Mesh, line, func() error {
		if text := metricsOf(t, n); !strings.Contains(text, line) {
			_, at, _ := strings.Cut(text, "weir_connections_open{")
			return fmt.Errorf("it says %.600s", at)
		}
		return nil
	})
}

func metricsOf(t *testing.T, n *meshlab.Node) string {
	t.Helper()
	return curl(t, n, "http://127.0.0.1:15000/metrics")
}

func TestUnmodifiedProgramsWorkThroughOneProxyAndTwo(t *testing.T) {
	t.Parallel()
	m := newProgramMesh(t)
	m.fallSilent(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *programMesh)
	}{
		{"ChecksOfServersThatGreetFirstPass", checksPass},
		{"RedisBenchmark", redisBenchmark},
		{"PostgreSQLWithAndWithoutTLSOfItsOwn", postgresql},
		{"Pgbench", pgbench},
		{"MariaDBGreetsFirst", mariadb},
		{"SMTPGreetsFirst", smtp},
		{"FTPGreetsFirst", ftp},
		{"SSH", ssh},
		{"HTTPSWithANameWithoutAndUnderAnother", https},
		{"TLSToAnUnknownAddressGoesByItsName", sniLeads},
		{"UrgentDataKeepsItsPlace", urgentData},
		{"ByteByByte", byteByByte},
		{"WebSocketMessages", webSocketMessages},
		{"CurlUpgrades", curlUpgrade},
		{"TheFirstByteIsNotHeldUp", firstByte},
		{"SilentConnectionsStillWork", speakAtLast},
		{"WebSocketsAreClosedByADrain", webSocketDrain},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, m) })
	}
}

func (m *programMesh) certificate(t *testing.T) {
	m.key, m.cert = filepath.Join(m.dir, "key"), filepath.Join(m.dir, "cert")
	output(t, m.data, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=data", "-addext", "subjectAltName=DNS:data", "-keyout", m.key, "-out", m.cert)
	for _, path := range []string{m.key, m.dir} { // PostgreSQL wants the key to be its own
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
}

// as runs a program as nobody.
func asNobody(program string, args ...string) []string {
	id := strconv.Itoa(nobody)
	return append([]string{"--reuid", id, "--regid", id, "--clear-groups", program}, args...)
}

// postgresProgram finds what Debian keeps by version; another system in PATH.
func postgresProgram(t *testing.T, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // only a bad pattern fails
	if len(found) > 0 {
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *programMesh) startServers(t *testing.T) {
	start := func(name string, port int, program string, args ...string) *meshlab.Process {
		t.Helper()
		p, err := m.data.Start(t.Context(), name, port, program, args...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	serve(t, m.data, "data", 8001, nil)
	echoServer(t, m.data, 9001, "")
	echoServer(t, m.data, 2525, greeting)

	db := filepath.Join(m.dir, "postgresql")
	output(t, m.data, "setpriv", asNobody(postgresProgram(t, "initdb"), "-D", db, "-U", "app", "-A", "trust", "--no-sync")...)
	m.write(t, "postgresql/pg_hba.conf", "host all all all trust\n")
	start("postgresql", 5432, "setpriv", asNobody(postgresProgram(t, "postgres"), "-D", db, "-p", "5432", "-c", "listen_addresses=*", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "ssl=on", "-c", "ssl_cert_file="+m.cert, "-c", "ssl_key_file="+m.key)...)

	maria := filepath.Join(m.dir, "mariadb")
	output(t, m.data, "setpriv", asNobody("mariadb-install-db", "--no-defaults", "--datadir="+maria, "--auth-root-authentication-method=normal", "--skip-name-resolve")...)
	m.write(t, "mariadb.sql", "CREATE USER app;\nGRANT ALL ON *.* TO app;\n")
	start("mariadb", 3306, "setpriv", asNobody("mariadbd", "--no-defaults", "--datadir="+maria, "--socket="+maria+"/s", "--bind-address=0.0.0.0", "--skip-name-resolve",
		"--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--init-file="+m.dir+"/mariadb.sql")...)

	start("redis", 6379, "redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", m.dir)
	start("smtp", 2526, debianPython, "-m", "aiosmtpd", "-n", "-l", "0.0.0.0:2526")
	m.startFTP(t, start)
	m.startSSH(t, start)
	for _, port := range []string{"8443", "8444"} {
		start("openssl-"+port, atoi(port), "openssl", "s_server", "-accept", port, "-key", m.key, "-cert", m.cert, "-www", "-quiet", "-alpn", "http/1.1")
	}
	m.ws = start("websocket", webSocketPort, debianPython, script(t, "websocket_server.py"), strconv.Itoa(webSocketPort))
}

type starter func(name string, port int, program string, args ...string) *meshlab.Process

func (m *programMesh) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *programMesh) startFTP(t *testing.T, start starter) {
	root := filepath.Join(m.dir, "ftp")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m.write(t, "ftp/file", "thirteen byte")
	empty := filepath.Join(m.dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := m.write(t, "vsftpd.conf", "listen=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nanon_root="+root+"\nsecure_chroot_dir="+empty+
		"\nseccomp_sandbox=NO\nnopriv_user=nobody\nftpd_banner=as in 1971\n")
	start("ftp", 21, "vsftpd", conf)
}

func (m *programMesh) startSSH(t *testing.T, start starter) {
	// Where sshd's unprivileged part lives; the package's own start makes it.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ssh-host", "ssh-user"} {
		output(t, m.data, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(m.dir, name))
	}
	conf := m.write(t, "sshd.conf", fmt.Sprintf("Port 22\nHostKey %[1]s/ssh-host\nAuthorizedKeysFile %[1]s/ssh-user.pub\nPermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\nUsePAM no\nPidFile none\nMaxStartups 100\n", m.dir))
	start("sshd", 22, "/usr/sbin/sshd", "-D", "-e", "-f", conf)
}

// checksPass: the control plane checks each port by a connection with mTLS, where
// plaintext is allowed too. A server's greeting must not take the hello's place.
func checksPass(t *testing.T, m *programMesh) {
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":0.2}}}`)
	defer set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":30}}}`)
	name := policy.ServiceName{Namespace: "default", Name: "data"}
	eps, err := m.API.Endpoints(t.Context(), name)
	if err != nil || len(eps) < 12 {
		t.Fatalf("%d endpoints, %v", len(eps), err)
	}
	for _, e := range eps {
		var h api.EndpointHealth
		await(t, m.Mesh, "five checks of "+e.ID, func() (err error) {
			if h, err = m.API.Health(t.Context(), name, e.ID); err == nil && len(h.History) < 5 {
				err = fmt.Errorf("%d were made", len(h.History))
			}
			return err
		})
		for _, r := range h.History {
			if !r.Passed {
				t.Errorf("%s: %s", e.ID, r.Detail)
			}
		}
	}
}

func redisBenchmark(t *testing.T, m *programMesh) {
	m.fromBoth(t, "redis", func(t *testing.T, from *meshlab.Node, host string) {
		got := output(t, from, "redis-benchmark", "-h", host, "-n", "2000", "-c", "10", "-t", "set,get,lpush,lrange_300", "--csv")
		if strings.Count(got, "\n") < 5 || strings.Contains(strings.ToLower(got), "error") {
			t.Errorf("%s", got)
		}
	})
}

func postgresql(t *testing.T, m *programMesh) {
	psql := postgresProgram(t, "psql")
	for mode, ssl := range map[string]string{"disable": "f", "require": "t", "verify-ca": "t"} {
		m.fromBoth(t, mode, func(t *testing.T, from *meshlab.Node, host string) {
			got := output(t, from, psql, "host="+host+" user=app dbname=postgres sslmode="+mode+" sslrootcert="+m.cert, "-At", "-c",
				"select ssl, (select sum(n) from generate_series(1,100000) n) from pg_stat_ssl where pid = pg_backend_pid()")
			if got != ssl+"|5000050000\n" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func pgbench(t *testing.T, m *programMesh) {
	bench := postgresProgram(t, "pgbench")
	output(t, m.front, "env", "PGSSLMODE=disable", bench, "-h", "data", "-U", "app", "-i", "-q", "postgres")
	m.fromBoth(t, "pgbench", func(t *testing.T, from *meshlab.Node, host string) {
		for _, mode := range []string{"disable", "require"} {
			// -C connects anew for each transaction: what a proxy that waits for first
			// bytes is slow at.
			got := output(t, from, "env", "PGSSLMODE="+mode, bench, "-h", host, "-U", "app", "-C", "-c", "4", "-t", "10", "postgres")
			if !strings.Contains(got, "number of transactions actually processed: 40/40") {
				t.Errorf("sslmode %s: %s", mode, got)
			}
		}
	})
}

func mariadb(t *testing.T, m *programMesh) {
	m.fromBoth(t, "mariadb", func(t *testing.T, from *meshlab.Node, host string) {
		got := output(t, from, "mariadb", "--no-defaults", "-h", host, "-u", "app", "--protocol=tcp", "-N", "-e",
			"select sum(seq) from test.seq_1_to_100000; select repeat('x', 1000000)")
		if got != "5000050000\n"+strings.Repeat("x", 1_000_000)+"\n" {
			t.Errorf("got %.60q", got)
		}
	})
}

func smtp(t *testing.T, m *programMesh) {
	mail := m.write(t, "mail", "Subject: through the mesh\r\n\r\nhello\r\n")
	m.fromBoth(t, "smtp", func(t *testing.T, from *meshlab.Node, host string) {
		out, err := from.Output(t.Context(), "curl", "-sS", "-v", "--max-time", "15", "smtp://"+host+":2526", "--mail-from", "a@example.org", "--mail-rcpt", "b@example.org", "--upload-file", mail)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// ftp uses the control connection only: the data connections that FTP makes go to
// ports which nobody declared.
func ftp(t *testing.T, m *programMesh) {
	m.fromBoth(t, "ftp", func(t *testing.T, from *meshlab.Node, host string) {
		if got := output(t, from, "curl", "-sS", "--max-time", "15", "-I", "ftp://"+host+"/file"); !strings.Contains(got, "Content-Length: 13\r\n") {
			t.Errorf("got %q", got)
		}
	})
}

func ssh(t *testing.T, m *programMesh) {
	m.fromBoth(t, "ssh", func(t *testing.T, from *meshlab.Node, host string) {
		got := output(t, from, "ssh", "-i", filepath.Join(m.dir, "ssh-user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
			"root@"+host, "head -c 3000000 /dev/zero | sha256sum")
		if got != "35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f  -\n" {
			t.Errorf("got %q", got)
		}
	})
}

func https(t *testing.T, m *programMesh) {
	m.fromBoth(t, "https", func(t *testing.T, from *meshlab.Node, host string) {
		for _, port := range []string{"8443", "8444"} { // declared https, and tcp
			at := host + ":" + port
			if host == "data" {
				// curl asks for the name; openssl for none, and for one of another.
				got := output(t, from, "curl", "-sS", "--max-time", "10", "--cacert", m.cert, "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}", "https://"+at+"/")
				if got != "200 0" {
					t.Errorf("port %s: %q", port, got)
				}
			}
			for _, name := range [][]string{{"-noservername"}, {"-servername", "www.example.org"}, {"-servername", "data", "-alpn", "h2,http/1.1"}, {"-tls1_2"}} {
				certs, out := shown(t, from, append([]string{"-connect", at}, name...)...)
				if len(certs) != 1 || certs[0].Subject.CommonName != "data" {
					t.Errorf("port %s with %v shows %d certificates:\n%s", port, name, len(certs), out)
				}
			}
		}
	})
}

// sniLeads: to an address where nothing listens, which is no service's.
func sniLeads(t *testing.T, m *programMesh) {
	at := m.outside.Join(8443)
	got := output(t, m.front, "curl", "-sS", "--max-time", "10", "--cacert", m.cert, "--connect-to", "data:8443:"+at, "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}", "https://data:8443/")
	if got != "200 0" {
		t.Errorf("by its name: %q", got)
	}
	for _, name := range [][]string{{"-noservername"}, {"-servername", "www.example.org"}} {
		if certs, out := shown(t, m.front, append([]string{"-connect", at}, name...)...); len(certs) > 0 {
			t.Errorf("with %v something answers there:\n%s", name, out)
		}
	}
	// And where somebody listens, a hello whose name is encrypted arrives there,
	// though the name that is to be seen is the service's.
	hello, err := os.ReadFile("../../proxy/detect/testdata/hello-ech.bin")
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, m.outside, 8444, "")
	if out, err := echoed(t.Context(), m.front, m.outside.Join(8444), string(hello)); out != string(hello) {
		t.Errorf("an encrypted hello came back as %d bytes of %d, %v", len(out), len(hello), err)
	}
}

func byteByByte(t *testing.T, m *programMesh) {
	hello, err := os.ReadFile("../../proxy/detect/testdata/hello-ech.bin")
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, m.outside, 9001, "")
	for name, to := range map[string]string{"two proxies": "data:9001", "from outside": "", "to outside": m.outside.Join(9001)} {
		from := m.front
		if to == "" {
			from, to = m.outside, m.data.Join(9001)
		}
		for _, text := range []string{"\x00\x00\x00\x08\x04\xd2\x16\x2f", "PRI or not to PRI", "GET key\r\nSET key 1\r\n", string(hello[:300])} {
			c := dial(t, from, to)
			for i := range len(text) {
				if _, err := io.WriteString(c, text[i:i+1]); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); string(got) != text || err != nil {
				t.Errorf("%s: %.20q came back as %q, %v", name, text, got, err)
			}
		}
	}
}

// fallSilent makes connections that say nothing for as long as the other tests
// take, which is longer than any limit on first bytes.
func (m *programMesh) fallSilent(t *testing.T) {
	echoServer(t, m.outside, 9009, "")
	for name, c := range map[string]struct {
		from *meshlab.Node
		to   string
	}{
		"declared tcp":    {m.front, "data:9001"},
		"declared http":   {m.front, "data:8001"},
		"from outside":    {m.outside, m.data.Join(9001)},
		"unknown address": {m.front, m.outside.Join(9009)},
	} {
		conn, err := c.from.DialContext(t.Context(), "tcp", c.to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		m.silent[name] = conn.(*net.TCPConn)
	}
}

func speakAtLast(t *testing.T, m *programMesh) {
	for name, c := range m.silent {
		says, hears := "hello?", "hello?"
		if name == "declared http" {
			says, hears = "GET / HTTP/1.1\r\nHost: data\r\n\r\n", "HTTP/1.1 200 OK\r\n"
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, says); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := make([]byte, len(hears))
		if n, err := io.ReadFull(c, got); err != nil || string(got) != hears {
			t.Errorf("%s: got %q, %v", name, got[:n], err)
		}
		_ = c.Close()
	}
	for n, words := range map[*meshlab.Node][]string{m.front: {"declared", "http1", "server_first", "tls", "opaque"}, m.data: {"declared", "server_first", "tls", "http1", "opaque"}} {
		text := metricsOf(t, n)
		for _, word := range words {
			if !strings.Contains(text, `weir_detect_total{outcome="`+word+`"} `) {
				t.Errorf("%s counts nothing as %s", n.Host.Name(), word)
			}
		}
	}
}
