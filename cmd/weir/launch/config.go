package launch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/weir-mesh/weir/test/netlab"
)

// newRun checks all that was asked for, before anything is made.
func newRun(cfg Config) (r *run, err error) {
	r = &run{cfg: cfg, slots: slots{Dir}}
	usage := func(flag string, e error) {
		if err == nil && e != nil {
			err = Usage{fmt.Errorf("%s: %w", flag, e)}
		}
	}
	var e error
	r.subnet, e = parseSubnet(cfg.Subnet)
	usage("--subnet", e)
	for _, s := range cfg.Publish {
		p, e := parsePublish(s)
		usage("--publish", e)
		r.publish = append(r.publish, p)
	}
	for _, kv := range cfg.Env {
		usage("--env", checkEnv(kv))
	}
	var file []string
	for _, name := range cfg.EnvFile {
		more, e := readEnvFile(name)
		usage("--env-file", e)
		file = append(file, more...)
	}
	for _, c := range cfg.Control {
		_, _, e := net.SplitHostPort(c)
		usage("--control", e)
	}
	if cfg.NAT && cfg.Netns != "" {
		usage("--nat", errors.New("is for a namespace on the bridge; --netns joins another one"))
	}
	if cfg.Grace < 0 {
		usage("--grace", fmt.Errorf("%v: a time before now", cfg.Grace))
	}
	if err != nil {
		return nil, err
	}
	if r.account, err = accountOf(cfg.User); err != nil {
		return nil, Usage{err}
	}
	r.env = r.account.environ(os.Environ(), file, cfg.Env)
	if !netlab.MayMake() {
		return nil, errors.New("network namespaces and rules are root's to make: sudo weir run … (without root, docs/RUN.md says how a user namespace does)")
	}
	return r, r.findPrograms()
}

// findPrograms looks beside this program, then in PATH.
func (r *run) findPrograms() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for name, path := range map[string]*string{"weir-proxy": &r.proxy, "weir-init": &r.init} {
		*path = filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(*path); err == nil {
			continue
		}
		if *path, err = exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is neither beside %s nor in PATH; install it there", name, self)
		}
	}
	return nil
}
