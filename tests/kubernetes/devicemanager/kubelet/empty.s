// This file is empty: its presence lets kubelet.go declare a function without a body.
