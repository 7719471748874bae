package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// kernelIPv6 is where the kernel lists IPv6 addresses, if it has IPv6. It is of
// the thread, not /proc/net, which is that of the process's first thread.
const kernelIPv6 = "/proc/thread-self/net/if_inet6"

func hasIPv6() bool {
	_, err := os.Stat(kernelIPv6)
	return err == nil
}

// installed is what one back end holds for each family that the kernel has.
type installed struct {
	backend  Mode
	families []familyState
	err      error // why it cannot be used at all
}

type familyState struct {
	tools
	ours    []table
	foreign int
}

func (in installed) ours() (n int) {
	for _, f := range in.families {
		n += len(f.ours)
	}
	return n
}

func (in installed) foreign() (n int) {
	for _, f := range in.families {
		n += f.foreign
	}
	return n
}

// look reads what a back end holds. It changes nothing: iptables-save, unlike
// iptables -L, does not make tables.
func look(ctx context.Context, backend Mode, ipv6 bool) installed {
	in := installed{backend: backend}
	for _, v6 := range []bool{false, true} {
		if v6 && !ipv6 {
			continue
		}
		t, err := findTools(ctx, v6, backend)
		if err != nil {
			return installed{backend: backend, err: err}
		}
		f := familyState{tools: t}
		if f.ours, f.foreign, err = t.state(ctx); err != nil {
			return installed{backend: backend, err: err}
		}
		in.families = append(in.families, f)
	}
	return in
}

// lookBoth reads both back ends, nft first.
func lookBoth(ctx context.Context, ipv6 bool) [2]installed {
	return [2]installed{look(ctx, ModeNFT, ipv6), look(ctx, ModeLegacy, ipv6)}
}

// choose picks the back end, and says why in words for a person. Rules in two
// back ends are both in force, so what is there already decides: our own rules
// first, so that a second run finds the first one's; then those of others, so
// that `iptables-save` shows everything in one place; then what works.
func choose(mode Mode, both [2]installed) (chosen, other installed, why string, err error) {
	nft, legacy := both[0], both[1]
	if mode == ModeAuto {
		if mode, why = prefer(nft, legacy); mode == ModeAuto {
			return installed{}, installed{}, "", errors.Join(nft.err, legacy.err)
		}
	} else {
		why = "it was asked for"
	}
	chosen, other = nft, legacy
	if mode == ModeLegacy {
		chosen, other = legacy, nft
	}
	if chosen.err != nil {
		return installed{}, installed{}, "", chosen.err
	}
	return chosen, other, why, nil
}

func prefer(nft, legacy installed) (Mode, string) {
	switch {
	case nft.err != nil && legacy.err != nil, errors.Is(nft.err, ErrNotPermitted):
		return ModeAuto, ""
	case nft.err != nil:
		return ModeLegacy, "nft cannot be used: " + nft.err.Error()
	case legacy.err != nil:
		return ModeNFT, "there is no other"
	case nft.ours() > 0:
		return ModeNFT, "it holds weir's rules already"
	case legacy.ours() > 0:
		return ModeLegacy, "it holds weir's rules already"
	case legacy.foreign() > 0 && nft.foreign() == 0:
		return ModeLegacy, fmt.Sprintf("it holds %d rules of others, nft holds none", legacy.foreign())
	}
	if err := probeAll(nft); err != nil {
		return ModeLegacy, "nft does not work here: " + err.Error()
	}
	if nft.foreign() > 0 {
		return ModeNFT, fmt.Sprintf("it holds %d rules of others, and works", nft.foreign())
	}
	return ModeNFT, "it works, and neither holds rules"
}

func probeAll(in installed) error {
	for _, f := range in.families {
		if err := f.probe(); err != nil {
			return err
		}
	}
	return nil
}
