package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weir-mesh/weir/test/meshlab"
)

// The ports on which the apps listen.
const (
	userPort  = "8001"
	orderPort = "8002"
	cachePort = "6379"
)

// apps are the programs that play the services: such as never heard of weir
// where the machine has them, else a plain server of Go's library.
type apps struct {
	mesh  *meshlab.Mesh
	nginx bool
	temps []string // of nginx's modules, those that want a directory
	files bool     // python3 -m http.server
	redis bool
}

// findApps looks which programs there are.
func findApps(ctx context.Context, m *meshlab.Mesh) (*apps, error) {
	a := &apps{mesh: m, nginx: installed("nginx"), files: installed("python3"), redis: installed("redis-server") && installed("redis-cli")}
	if a.nginx {
		built, err := exec.CommandContext(ctx, "nginx", "-V").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("nginx -V: %w: %s", err, built)
		}
		for _, module := range []string{"proxy", "fastcgi", "uwsgi", "scgi"} {
			if !strings.Contains(string(built), "--without-http_"+module+"_module") {
				a.temps = append(a.temps, module)
			}
		}
	}
	return a, nil
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

const (
	plainWeb  = "a plain net/http server"
	plainEcho = "a plain TCP echo server"
)

// String says which programs are used.
func (a *apps) String() string {
	return fmt.Sprintf("%s (%s), %s (%s), %s (%s)", either(a.nginx, "nginx", plainWeb), userService,
		either(a.files, "python3 -m http.server", plainWeb), orderService, either(a.redis, "redis-server", plainEcho), cacheService)
}

func (a *apps) caller() string { return either(a.redis, " and redis-cli", " and a TCP client") }

func either(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

// dir is where an app keeps its files.
func (a *apps) dir(n *meshlab.Node) (string, error) {
	dir := filepath.Join(a.mesh.Dir, "app-"+n.Host.Name())
	return dir, os.MkdirAll(dir, 0o755)
}

// failFile is the file that makes a node's web app answer 500 while it exists.
func (a *apps) failFile(n *meshlab.Node) string {
	return filepath.Join(a.mesh.Dir, "app-"+n.Host.Name(), "fail")
}

// startWeb starts a web server that answers with its name and version, with what
// it was asked, and with who it was told is calling.
func (a *apps) startWeb(ctx context.Context, n *meshlab.Node, version string) error {
	dir, err := a.dir(n)
	if err != nil {
		return err
	}
	instance := n.Host.Name()
	if !a.nginx {
		_, err := n.Start(ctx, "app-"+instance, atoi(userPort), a.mesh.Program("weir"), "demo", "app", "--instance", instance, "--version", version,
			"--listen", ":"+userPort, "--fail-file", a.failFile(n))
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(a.nginxConf(dir, instance, version)), 0o644); err != nil {
		return err
	}
	_, err = n.Start(ctx, "app-"+instance, atoi(userPort), "nginx", "-p", dir, "-c", conf)
	return err
}

// nginxConf keeps all that nginx writes in dir.
func (a *apps) nginxConf(dir, instance, version string) string {
	var temps strings.Builder
	for _, module := range a.temps {
		fmt.Fprintf(&temps, "\t%s_temp_path %s/temp-%s;\n", module, dir, module)
	}
	return strings.NewReplacer("DIR", dir, "INSTANCE", instance, "VERSION", version, "PORT", userPort, "\tTEMPS\n", temps.String()).Replace(`daemon off;
user root;
worker_processes 1;
pid DIR/nginx.pid;
error_log stderr;
events { worker_connections 128; }
http {
	access_log off;
	client_body_temp_path DIR/temp-body;
	TEMPS
	default_type text/plain;
	server {
		listen PORT;
		add_header X-Instance INSTANCE always;
		add_header X-Version VERSION always;
		add_header X-Caller $http_x_source_namespace/$http_x_source_service always;
		location = /health { return 200 "ok\n"; }
		location / {
			if (-f DIR/fail) { return 500 "INSTANCE fails\n"; }
			return 200 "INSTANCE VERSION uri=$request_uri note=$http_x_note\n";
		}
	}
}
`)
}

// startFiles starts a web server of files.
func (a *apps) startFiles(ctx context.Context, n *meshlab.Node) error {
	dir, err := a.dir(n)
	if err != nil {
		return err
	}
	if !a.files {
		_, err := n.Start(ctx, "app-orders", atoi(orderPort), a.mesh.Program("weir"), "demo", "app", "--instance", "orders", "--version", "v1", "--listen", ":"+orderPort)
		return err
	}
	for file, text := range map[string]string{"health": "ok\n", "index.html": "orders\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err = n.Start(ctx, "app-orders", atoi(orderPort), "python3", "-m", "http.server", "--directory", dir, orderPort)
	return err
}

// startCache starts the server of raw TCP.
func (a *apps) startCache(ctx context.Context, n *meshlab.Node) error {
	dir, err := a.dir(n)
	if err != nil {
		return err
	}
	if !a.redis {
		_, err := n.Start(ctx, "app-cache", atoi(cachePort), a.mesh.Program("weir"), "demo", "app", "--echo", "--listen", ":"+cachePort)
		return err
	}
	_, err = n.Start(ctx, "app-cache", atoi(cachePort), "redis-server", "--port", cachePort, "--bind", "0.0.0.0", "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--dir", dir)
	return err
}
