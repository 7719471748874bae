package launch

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"

	"github.com/weir-mesh/weir/test/netlab"
)

// takeDown undoes what was set up. The proxy goes first: it drains by the ways that
// the others are. A signal in the meantime ends the wait for it.
func (r *run) takeDown(signals <-chan os.Signal) error {
	if r.side != nil {
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan struct{})
		go func() {
			defer cancel()
			for {
				select {
				case s := <-signals:
					if s == syscall.SIGINT || s == syscall.SIGTERM || s == syscall.SIGQUIT {
						return
					}
				case <-over:
					return
				}
			}
		}()
		r.side.stop(ctx)
		close(over)
	}
	var errs []error
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// leave gives back the slot, and with the last one the bridge.
func (r *run) leave() error {
	return r.slots.exclusively(func() error {
		var errs []error
		if r.entry.Joined {
			if r.ns != nil {
				errs = append(errs, r.ns.Close())
			}
		} else {
			errs = append(errs, removeLink(portName(r.slot.number)))
			if r.ns != nil {
				errs = append(errs, r.ns.EndProcesses(), r.ns.Remove())
			}
		}
		errs = append(errs, r.slot.free())
		others, err := r.slots.others(r.slot)
		if err == nil && !others {
			if r.slots.marked("nat") {
				errs = append(errs, closeNAT())
			}
			errs = append(errs, removeLink(bridgeName), r.slots.remove())
		}
		return errors.Join(append(errs, err)...)
	})
}

// removeDead removes what a run that was killed has left. Its processes have died
// with it, or do so in this moment.
func (r *run) removeDead(e Entry) error {
	if !e.Joined {
		return errors.Join(removeLink(portName(e.Number)), netlab.RemoveNamespace(netnsName(e.Number)))
	}
	ns, err := netlab.OpenNamespace(e.Netns)
	if err != nil || len(e.Cleanup) == 0 {
		return nil // it has gone, or was left as it was
	}
	defer func() { _ = ns.Close() }()
	if ns.Inode() != e.Inode {
		return nil // another one of this name
	}
	_, err = r.weirInit(context.Background(), e.Cleanup[1:]...)
	return err
}
