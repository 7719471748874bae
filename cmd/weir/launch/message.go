package launch

import "time"

// program is what the first process of the namespaces is to start there.
type program struct {
	Args       []string      `json:"args"`
	Dir        string        `json:"dir,omitempty"` // "" is where weir run was started
	Credential *credential   `json:"credential,omitempty"`
	ResolvConf string        `json:"resolvConf"` // file to show as /etc/resolv.conf
	Search     bool          `json:"search"`     // a search list was asked for, so the file must be shown
	Grace      time.Duration `json:"grace"`      // from SIGTERM to SIGKILL for what the program leaves running
}

// credential is the user that a program runs as.
type credential struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// order goes from weir run to the first process.
type order struct {
	Start  *program `json:"start,omitempty"`
	Signal int      `json:"signal,omitempty"`
	Group  bool     `json:"group,omitempty"` // to the program's process group, as a terminal does
	End    bool     `json:"end,omitempty"`   // kill what is left, do not wait
}

// event is what the first process tells weir run.
type event struct {
	Started bool   `json:"started,omitempty"`
	Stopped int    `json:"stopped,omitempty"` // by which signal
	Failed  string `json:"failed,omitempty"`  // why it was not started
	Ended   bool   `json:"ended,omitempty"`
	Status  int    `json:"status,omitempty"` // with Ended and Failed, as a shell has it
}

// What a shell's $? says of a command; 125 is what env(1), timeout(1) and docker
// end with when they fail themselves.
const (
	statusOwn           = 125
	statusNotExecutable = 126
	statusNotFound      = 127
	statusSignal        = 128 // plus the signal's number
)
