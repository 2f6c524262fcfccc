"""How good stored scans are: measures, pictures without faces, who stands apart; numpy and scipy alone compute."""
