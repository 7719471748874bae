package launch

import (
	"os/exec"
	"runtime"

	"github.com/weir-mesh/weir/test/netlab"
)

// startIn starts a process in a network namespace, and gives how it ended when it
// has. prepare, if any, is called on the thread that starts it. That thread stays
// until then: the kernel takes its end for the parent's, and sends Pdeathsig.
func startIn(ns *netlab.Namespace, cmd *exec.Cmd, prepare func() error) (ended <-chan error, err error) {
	started, end := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := ns.Enter()
		if err == nil && prepare != nil {
			err = prepare()
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}
