package demo

import (
	"fmt"
	"os"
)

// printKeep says what to try while the mesh is left running.
func (d *demo) printKeep() {
	enter := ""
	if inUserNamespace() {
		enter = fmt.Sprintf("nsenter --user --mount --preserve-credentials -t %d ", os.Getpid())
	}
	in := func(netns string) string { return enter + "ip netns exec " + netns + " " }
	front, control := in(d.frontend.Netns()), in(d.mesh.Host.Netns())
	weir := control + d.mesh.Program("weir") + " "
	token := " --token-file " + d.mesh.TokenFile()
	curl := "curl"
	if os.Getenv("http_proxy") != "" {
		curl += " --noproxy '*'"
	}
	d.out.line("\nThe mesh is left running. To try, in another terminal:")
	for _, t := range [][2]string{
		{"a call through the mesh", front + curl + " -i http://" + userService + "/"},
		{"one to version v2", front + curl + " -i -H 'version: beta' http://" + userService + "/"},
		{"one that is refused", in(d.stranger.Netns()) + curl + " -i http://" + userService + "/"},
		{"the frontend's sidecar", front + curl + " http://127.0.0.1:15000/status"},
		{"its redirection", front + "iptables-save"},
		{"the services", weir + "get services" + token},
		{"the rules", weir + "get security-rules" + token},
		{"logs", "ls " + d.mesh.Dir + "/*.log"},
	} {
		d.out.line("  %-24s %s", t[0], t[1])
	}
	d.out.line("Ctrl-C here (or kill %d) ends it and removes everything.", os.Getpid())
}
