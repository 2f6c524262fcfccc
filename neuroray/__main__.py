"""`python -m neuroray <job>`: what `ray job submit` calls; hands over to the command line."""

from neuroray.jobs.cli import main

if __name__ == "__main__":
    main()
